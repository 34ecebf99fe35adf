"""The command lines of Flower's roles: SuperLink, ServerApp, SuperNode.

Local processes and containers run the same ones. The ServerApp is not a child of the SuperLink, so
it survives the SuperLink's restart; the SuperLink's database keeps the messages in flight.
"""

import json
from collections.abc import Mapping

from fl.config import ConfigError, Scalar

# files that `fedpatchcore certs` writes into the folders of the SuperLink and of each node
CA, CERTIFICATE, KEY, NODE_KEY = "ca.pem", "server.pem", "server-key.pem", "node.key"


def superlink_command(
    host: str, port: int, *, database: str = "", certs: str = "", simulation: bool = False
) -> list[str]:
    """The command of the SuperLink, which accepts runs and relays messages.

    Args:
        host, port: where it listens.
        database: a file for its state; "" keeps the state in memory.
        certs: its folder of certificates; "" encrypts nothing and lets in every node.
        simulation: simulate the clients on Ray; then it also starts the ServerApp.
    """
    return [
        "fedpatchcore-superlink", "--host", host, "--port", str(port),
        "--disable-runtime-dependency-installation",
        *(["--simulation"] if simulation else ["--isolation", "process"]),
        *(["--database", database] if database else []),
        *(_server_tls(certs) if certs else ["--insecure"]),
    ]  # fmt: skip


def serverapp_command(superlink: str, *, certs: str = "") -> list[str]:
    """The command that starts the ServerApp of each run, on the SuperLink's machine.

    Args:
        superlink: host:port of the SuperLink on a loopback address.
        certs: the SuperLink's folder of certificates.
    """
    return ["flower-superexec", "--runtime-api-address", superlink, *_client_tls(certs)]


def supernode_command(
    superlink: str, port: int, config: Mapping[str, Scalar], *, certs: str = ""
) -> list[str]:
    """The command of a SuperNode, which computes where its images are.

    Args:
        superlink: host:port of the SuperLink.
        port: its own port, for the client processes that it starts.
        config: `partition-id`, and `data-root` if the node's data are its own.
        certs: the node's folder: the certificate to trust and its own key.

    Raises:
        ConfigError: a value contains a quotation mark, which Flower cannot parse.
    """
    if any('"' in str(value) for value in config.values()):
        raise ConfigError(f"a node's configuration cannot contain quotation marks: {dict(config)}")
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
