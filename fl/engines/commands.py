"""The roles of a deployment as commands: SuperLink, ServerApp, a SuperNode for each plant's GPU.

A container runs them as well as a plain process does; nothing else says how a role is started.
The ServerApp runs beside the SuperLink, not below it: it outlives the SuperLink's restart, and the
SuperLink's database keeps what was on its way.
"""

import json
from collections.abc import Mapping

from fl.config import ConfigError, Scalar

# what `fedpatchcore certs` writes into the folder of the SuperLink and into that of each node
CA, CERTIFICATE, KEY, NODE_KEY = "ca.pem", "server.pem", "server-key.pem", "node.key"


def superlink_command(
    host: str, port: int, *, database: str = "", certs: str = "", simulation: bool = False
) -> list[str]:
    """The SuperLink, which takes runs and passes messages on, on one port.

    Args:
        host, port: where it listens.
        database: file that keeps its state; in memory where left out.
        certs: its folder of certificates; without, nothing is encrypted and every node let in.
        simulation: for simulated clients on Ray; it then starts the ServerApp itself.
    """
    return [
        "fedpatchcore-superlink", "--host", host, "--port", str(port),
        "--disable-runtime-dependency-installation",
        *(["--simulation"] if simulation else ["--isolation", "process"]),
        *(["--database", database] if database else []),
        *(_server_tls(certs) if certs else ["--insecure"]),
    ]  # fmt: skip


def serverapp_command(superlink: str, *, certs: str = "") -> list[str]:
    """What starts the ServerApp of each run; on the SuperLink's machine.

    Args:
        superlink: host:port of the SuperLink, on a loopback address.
        certs: the SuperLink's folder of certificates.
    """
    return ["flower-superexec", "--runtime-api-address", superlink, *_client_tls(certs)]


def supernode_command(
    superlink: str, port: int, config: Mapping[str, Scalar], *, certs: str = ""
) -> list[str]:
    """A SuperNode, which computes where its images are.

    Args:
        superlink: host:port of the SuperLink.
        port: of its own, for the client processes that it starts.
        config: partition-id, and data-root where the node's data are its own.
        certs: the node's folder of certificates: whom to trust, and its own key.

    Raises:
        ConfigError: a value with a quotation mark, which Flower cannot pass on.
    """
    if any('"' in str(value) for value in config.values()):
        raise ConfigError(f"a node's configuration can hold no quotation mark: {dict(config)}")
    key = ["--auth-supernode-private-key", f"{certs}/{NODE_KEY}"] if certs else []
    return [
        "flower-supernode", "--superlink", superlink, "--port", str(port),
        *_client_tls(certs), *key,
        "--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in config.items()),
    ]  # fmt: skip


def _server_tls(certs: str) -> list[str]:
    return [
        "--ssl-ca-certfile", f"{certs}/{CA}", "--ssl-certfile", f"{certs}/{CERTIFICATE}",
        "--ssl-keyfile", f"{certs}/{KEY}", "--enable-supernode-auth",
    ]  # fmt: skip


def _client_tls(certs: str) -> list[str]:
    return ["--root-certificates", f"{certs}/{CA}"] if certs else ["--insecure"]
