"""Who is let in: the nodes that a SuperLink knows, by their keys. Told to it on its own machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.cli.supernode.register import try_load_public_key
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control.control_http_client import ControlHttpClient

from fl.engines.commands import CA
from fl.engines.processes import EngineError


@dataclass(frozen=True)
class Place:
    """Where a SuperLink is.

    Attributes:
        address: host:port, on a loopback address: it takes runs from its own machine alone.
        certs: its folder of certificates; "" where it has none.
    """

    address: str
    certs: str = ""


def known_nodes(place: Place) -> list[NodeInfo]:
    """The SuperNodes that a SuperLink knows: name, status, when they came, ...

    Raises:
        EngineError: it does not answer.
    """
    with _control(place) as link:
        return sorted(link.ListNodes(ListNodesRequest()).nodes_info, key=lambda node: node.name)


def admit(place: Place) -> list[str]:
    """Let in the nodes whose public keys lie in the SuperLink's folder; returns the new ones.

    Raises:
        EngineError: the SuperLink does not answer, or refuses a key.
    """
    known = {node.name for node in known_nodes(place)}
    keys = sorted(Path(place.certs).glob("node-*.pub")) if place.certs else []
    new = [key for key in keys if key.stem not in known]
    with _control(place) as link:
        for key in new:
            public = try_load_public_key(key)
            link.RegisterNode(RegisterNodeRequest(public_key=public, name=key.stem))
    return [key.stem for key in new]


def expel(place: Place, name: str) -> None:
    """Let a node in no more, and drop it where it is there; its key is refused from now on.

    Raises:
        EngineError: the SuperLink does not answer, or knows no such node.
    """
    found = [node.node_id for node in known_nodes(place) if node.name == name]
    if not found:
        raise EngineError("unknown", f"the SuperLink at {place.address} knows no {name}")
    with _control(place) as link:
        link.UnregisterNode(UnregisterNodeRequest(node_id=found[0]))


@contextmanager
def _control(place: Place) -> Iterator[ControlHttpClient]:
    """A SuperLink, to be told or asked; what goes wrong is an EngineError."""
    authority = Path(place.certs, CA).read_bytes() if place.certs else None
    link = ControlHttpClient.from_server_address(place.address, not place.certs, authority, [])
    try:
        yield link
    except httpx.HTTPStatusError as error:
        said = f"the SuperLink at {place.address} refuses: {error.response.text}"
        raise EngineError("unknown", said) from error
    except httpx.HTTPError as error:
        said = f"the SuperLink at {place.address} does not answer: {error}"
        raise EngineError("unknown", said) from error
    finally:
        link.close()
