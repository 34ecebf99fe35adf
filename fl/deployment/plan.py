"""The plan of a deployment: the roles to run on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl.config import ConfigError, Scalar
from fl.engines.commands import CERTIFICATE, NODE_KEY

LOOPBACK, EVERYWHERE = ("127.0.0.1", "localhost"), ("0.0.0.0",)  # noqa: S104 - behind the gate

NodeConfig = Mapping[str, Scalar]


@dataclass(frozen=True)
class DeploymentPlan:
    """Which roles run on this machine."""

    # the configuration of each SuperNode here: `partition-id`, and `data-root` if its data are its
    # own
    nodes: Sequence[NodeConfig]
    # host:port of a SuperLink elsewhere; "" starts one here, with the ServerApp beside it. host,
    # port: where the SuperLink listens; port 0 takes a free one
    join: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    certs: str = ""  # the folder that `make_certificates` filled; "" runs without TLS and keys
    # GPUs of this machine, as in CUDA_VISIBLE_DEVICES; the nodes take them in turn
    gpus: Sequence[str] = ()

    def superlink_certs(self) -> str:
        """The SuperLink's folder of certificates."""
        return f"{self.certs}/superlink" if self.certs else ""

    def node_certs(self, config: NodeConfig) -> str:
        """A node's folder of certificates."""
        return f"{self.certs}/node-{config['partition-id']}" if self.certs else ""

    def check(self) -> None:
        """Refuse a plan that lets strangers in, or that this machine cannot submit runs to.

        Raises:
            ConfigError: a certificate or key is missing; the SuperLink listens only on an address
                that is not loopback, so the ServerApp and the command line do not reach it; or it
                listens on all addresses without asking for keys.
        """
        if self.certs:
            files = [f"{self.node_certs(config)}/{NODE_KEY}" for config in self.nodes]
            files += [] if self.join else [f"{self.superlink_certs()}/{CERTIFICATE}"]
            for path in files:
                if not Path(path).is_file():
                    raise ConfigError(f"--certs: {path} is missing; `fedpatchcore certs` makes it")
        if self.join or self.host in LOOPBACK:
            return
        if self.host not in EVERYWHERE:
            raise ConfigError(
                f"--host {self.host}: runs are submitted on loopback, so use 127.0.0.1 for this "
                "machine alone, or 0.0.0.0 for all addresses and a firewall to choose among them"
            )
        if not self.certs:
            raise ConfigError(
                f"--host {self.host}: other machines could reach the SuperLink, so it needs --certs"
            )
