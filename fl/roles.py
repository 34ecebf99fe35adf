"""The roles of a deployment as commands: one SuperLink, and a SuperNode for each plant's GPU.

A container runs them as well as a plain process does; nothing else says how a role is started.
"""

import json
from collections.abc import Mapping

from fl.config import ConfigError, Scalar


def superlink_command(host: str, port: int) -> list[str]:
    """The SuperLink, which takes runs and passes messages on, on one port."""
    return [
        "flower-superlink", "--insecure", "--host", host, "--port", str(port),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def supernode_command(superlink: str, port: int, config: Mapping[str, Scalar]) -> list[str]:
    """A SuperNode, which computes where its images are.

    Args:
        superlink: host:port of the SuperLink.
        port: of its own, for the client processes that it starts.
        config: partition-id, and data-root where the node's data are its own.

    Raises:
        ConfigError: a value with a quotation mark, which Flower cannot pass on.
    """
    if any('"' in str(value) for value in config.values()):
        raise ConfigError(f"a node's configuration can hold no quotation mark: {dict(config)}")
    return [
        "flower-supernode", "--insecure", "--superlink", superlink, "--port", str(port),
        "--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in config.items()),
    ]  # fmt: skip
