"""Register SuperNodes with a SuperLink by their public keys; works on the SuperLink's machine."""

from pathlib import Path

from flwr.cli.supernode.register import try_load_public_key
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.proto.node_pb2 import NodeInfo

from fl.engines.control import SuperLinkAddress, control_client
from fl.engines.processes import EngineError


def known_nodes(superlink: SuperLinkAddress) -> list[NodeInfo]:
    """The SuperNodes that a SuperLink knows, with name, status and times.

    Raises:
        EngineError: the SuperLink does not answer.
    """
    with control_client(superlink) as client:
        return sorted(client.ListNodes(ListNodesRequest()).nodes_info, key=lambda node: node.name)


def register_nodes(superlink: SuperLinkAddress) -> list[str]:
    """Register the keys in the SuperLink's folder of certificates; returns the new nodes' names.

    Raises:
        EngineError: the SuperLink does not answer, or refuses a key.
    """
    known = {node.name for node in known_nodes(superlink)}
    keys = sorted(Path(superlink.certs).glob("node-*.pub")) if superlink.certs else []
    new = [key for key in keys if key.stem not in known]
    with control_client(superlink) as client:
        for key in new:
            public_key = try_load_public_key(key)
            client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=key.stem))
    return [key.stem for key in new]


def unregister_node(superlink: SuperLinkAddress, name: str) -> None:
    """Disconnect a node for good: the SuperLink never accepts its key again.

    Raises:
        EngineError: the SuperLink does not answer, or knows no such node.
    """
    ids = [node.node_id for node in known_nodes(superlink) if node.name == name]
    if not ids:
        raise EngineError(f"the SuperLink at {superlink.address} knows no {name}")
    with control_client(superlink) as client:
        client.UnregisterNode(UnregisterNodeRequest(node_id=ids[0]))
