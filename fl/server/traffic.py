"""What a run's exchanges cost, and who was left out: a value that grows with each exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from src.storage.run_metrics import Refusal, Stage


@dataclass(frozen=True)
class ClientTraffic:
    """The cost of one client's replies."""

    upload_bytes: int = 0  # bytes it sent before the evaluation
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds it worked

    def plus(self, upload_bytes: int, seconds: Mapping[str, float]) -> "ClientTraffic":
        """The cost with one more reply."""
        added = {
            stage: self.seconds.get(stage, 0.0) + seconds.get(stage, 0.0)
            for stage in {**self.seconds, **seconds}
        }
        return ClientTraffic(self.upload_bytes + upload_bytes, added)


@dataclass(frozen=True)
class Traffic:
    """The exchanges of a run."""

    # one an exchange, in order, with bytes from all clients and to each
    stages: tuple[Stage, ...] = ()
    # client -> the cost of its replies
    clients: Mapping[int, ClientTraffic] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()  # clients that are left out, with the reason

    def with_stage(self, stage: Stage) -> "Traffic":
        """Append an exchange."""
        return replace(self, stages=(*self.stages, stage))

    def with_reply(self, client: int, upload_bytes: int, seconds: Mapping[str, float]) -> "Traffic":
        """Add the cost of a client's reply."""
        total = self.clients.get(client, ClientTraffic()).plus(upload_bytes, seconds)
        return replace(self, clients={**self.clients, client: total})

    def with_refusal(self, client: int | str, reason: str) -> "Traffic":
        """Leave a client out; the first reason stays."""
        if client in [refusal.client for refusal in self.refused]:
            return self
        return replace(self, refused=(*self.refused, Refusal(client=client, reason=reason)))

    def readmit(self, *names: int | str) -> "Traffic":
        """Take back in a client, by any of its names."""
        return replace(self, refused=tuple(r for r in self.refused if r.client not in names))
