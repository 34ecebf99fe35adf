"""Which roles of a deployment are to run on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl.config.schema import ConfigError, Scalar
from fl.engines.commands import CERTIFICATE, NODE_KEY

LOOPBACK, EVERYWHERE = ("127.0.0.1", "localhost"), ("0.0.0.0",)  # noqa: S104 - behind the gate

NodeConfig = Mapping[str, Scalar]


@dataclass(frozen=True)
class Plan:
    """Which roles are to run on this machine.

    Attributes:
        nodes: the configuration of each SuperNode here: its partition-id, and data-root where its
            data are its own.
        join: host:port of a SuperLink elsewhere; "" starts one here, and the ServerApp beside it.
        host, port: where the SuperLink listens; port 0 takes a free one.
        certs: folder that `make_certificates` filled; "" goes without TLS and keys.
        gpus: of this machine, as CUDA_VISIBLE_DEVICES names them; the nodes take them in turn.
    """

    nodes: Sequence[NodeConfig]
    join: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    certs: str = ""
    gpus: Sequence[str] = field(default_factory=tuple)

    def superlink_certs(self) -> str:
        """The SuperLink's folder of certificates."""
        return f"{self.certs}/superlink" if self.certs else ""

    def check(self) -> None:
        """Refuse a plan that would let strangers in, or the SuperLink's own machine out.

        Raises:
            ConfigError: a certificate or key that it needs is missing; it listens on one address
                that is not loopback, where the ServerApp and the command line do not reach it; or
                on all of them, and asks for no key.
        """
        if self.certs:
            needed = [f"{self.node_certs(config)}/{NODE_KEY}" for config in self.nodes]
            needed += [] if self.join else [f"{self.superlink_certs()}/{CERTIFICATE}"]
            for path in needed:
                if not Path(path).is_file():
                    raise ConfigError(f"--certs: {path} is missing; `fedpatchcore certs` makes it")
        if self.join or self.host in LOOPBACK:
            return
        if self.host not in EVERYWHERE:
            raise ConfigError(
                f"--host {self.host}: runs are submitted on loopback, so the SuperLink listens "
                "there alone (127.0.0.1) or everywhere (0.0.0.0); a firewall can be choosier"
            )
        if not self.certs:
            raise ConfigError(
                f"--host {self.host}: other machines could reach the SuperLink, so it needs --certs"
            )

    def node_certs(self, config: NodeConfig) -> str:
        """A node's folder of certificates."""
        return f"{self.certs}/node-{config['partition-id']}" if self.certs else ""
