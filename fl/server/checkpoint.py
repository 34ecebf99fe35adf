"""The state of a run on disk after each round, so that an interrupted run goes on from there.

model.safetensors holds the merged banks and is a complete model except for thresholds; round.json
holds the rest of the state. The rows that clients sent are not kept, only their counts: the merged
bank covers what they cover.
"""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from fl.config import ConfigError
from fl.server.state import ClientRecord, ServerState
from fl.server.traffic import Traffic
from src.federated.bank_set import BankSet
from src.federated.types import Certificate, ClientBank, ClientStats, MergedBank
from src.models import PatchCore
from src.models.model_file import ModelFile
from src.storage.atomic import write_whole

MODEL, ROUND = "model.safetensors", "round.json"
VERSION = 4


class _Bank(BaseModel):
    certificate: Certificate | None
    log_scores: tuple[float, float] | None


class _Client(BaseModel):
    stats: dict[str, ClientStats]
    share_radius: dict[str, float]
    sent_rows: int


class _RoundFile(BaseModel):
    """The content of round.json: a ServerState without rows."""

    version: int = VERSION
    round: int
    banks: dict[str, _Bank]
    clients: dict[int, _Client]
    traffic: Traffic
    merge_seconds: float


class Checkpoint:
    """The checkpoint in a run directory.

    Args:
        out: the run directory.
        model: whose banks are saved; gives the configuration and the fingerprint.
    """

    def __init__(self, out: Path, model: PatchCore) -> None:
        self.out, self.model = out, model

    def save(self, state: ServerState) -> None:
        """Write the state; round.json last, so that it vouches for the model."""
        (self.out / ROUND).unlink(missing_ok=True)  # describes the earlier model
        transforms = {n: bank.transform for n, bank in state.banks.items() if bank.transform}
        rows = {name: bank.features for name, bank in state.banks.items()}
        self.model.as_file(rows, {}, transforms).write(self.out / MODEL)
        content = _RoundFile(
            round=state.round,
            banks={
                name: _Bank(certificate=bank.certificate, log_scores=bank.log_scores)
                for name, bank in state.banks.items()
            },
            clients={number: _client(record) for number, record in state.clients.items()},
            traffic=state.traffic,
            merge_seconds=state.merge_seconds,
        )
        write_whole(self.out / ROUND, content.model_dump_json(indent=1) + "\n")

    def load(self) -> ServerState:
        """Read the state back. Clients of a resumed run have no merged rows yet.

        Raises:
            ConfigError: there is no state, it cannot be read, or it is of another backbone or
                version.
        """
        path = self.out / ROUND
        try:
            content = _RoundFile.model_validate_json(path.read_bytes())
            file = ModelFile.read(self.out / MODEL)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.out} holds no merged bank to go on from: the run broke off before its "
                "first round ended; start it anew"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{path}, {key}: {first['msg']}; start the run anew") from None
        if content.version != VERSION:
            raise ConfigError(
                f"{path} is of version {content.version}, this program reads {VERSION}"
            )
        ours = self.model.backbone.fingerprint
        if file.fingerprint != ours:
            raise ConfigError(
                f"{self.out} is of another backbone ({file.fingerprint}, here {ours})"
            )
        return _state(content, file)


def _client(record: ClientRecord) -> _Client:
    radii = {name: bank.share_radius for name, bank in record.banks.items()}
    return _Client(stats=dict(record.stats), share_radius=radii, sent_rows=record.sent_rows)


def _state(content: _RoundFile, file: ModelFile) -> ServerState:
    banks = {
        name: MergedBank(file.banks[name], file.transforms.get(name), **dict(fields))
        for name, fields in content.banks.items()
    }
    return ServerState(
        round=content.round,
        banks=BankSet(banks),
        clients={number: _record(client, banks) for number, client in content.clients.items()},
        traffic=content.traffic,
        merge_seconds=content.merge_seconds,
    )


def _record(client: _Client, banks: dict[str, MergedBank]) -> ClientRecord:
    """A client's record; the rows it sent are in the merged bank, which covers what it holds."""
    sent = {
        name: ClientBank(banks[name].features[:0], c.radius_bound, radius, client.stats[name])
        for name, radius in client.share_radius.items()
        if (c := banks[name].certificate)
    }
    return ClientRecord(client.stats, sent, client.sent_rows)
