"""The state of a run on disk after each round, so that an interrupted run goes on from there.

model.safetensors holds the merged banks and is a complete model except for thresholds; round.json
holds the rest of the state. The rows that clients sent are not kept, only their counts: the merged
bank covers what they cover.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fl.config import ConfigError
from fl.server.state import ClientRecord, ServerState
from fl.server.traffic import ClientTraffic, Traffic
from src.federated.bank_set import BankSet
from src.federated.types import Certificate, ClientBank, ClientStats, MergedBank
from src.models import PatchCore
from src.models.model_file import ModelFile
from src.storage.atomic import write_whole
from src.storage.run_metrics import Refusal, Stage

MODEL, ROUND = "model.safetensors", "round.json"
VERSION = 4

Stages = TypeAdapter(tuple[Stage, ...])
Refusals = TypeAdapter(tuple[Refusal, ...])


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
        write_whole(self.out / ROUND, json.dumps(_content(state), indent=1) + "\n")

    def load(self) -> ServerState:
        """Read the state back. Clients of a resumed run have no merged rows yet.

        Raises:
            ConfigError: there is no state, or it is of another backbone or version.
        """
        try:
            content = json.loads((self.out / ROUND).read_text("utf-8"))
            file = ModelFile.read(self.out / MODEL)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.out} holds no merged bank to go on from: the run broke off before its "
                "first round ended; start it anew"
            ) from error
        if content["version"] != VERSION:
            raise ConfigError(
                f"{self.out / ROUND} is of version {content['version']}, this program reads "
                f"{VERSION}"
            )
        ours = self.model.backbone.fingerprint
        if file.fingerprint != ours:
            raise ConfigError(
                f"{self.out} is of another backbone ({file.fingerprint}, here {ours})"
            )
        return _state(content, file)


def _content(state: ServerState) -> dict[str, Any]:
    """The state without rows."""
    return {
        "version": VERSION,
        "round": state.round,
        "banks": {
            name: {
                "certificate": asdict(bank.certificate) if bank.certificate else None,
                "log_scores": bank.log_scores,
            }
            for name, bank in state.banks.items()
        },
        "clients": {
            client: {
                "stats": {name: asdict(stats) for name, stats in record.stats.items()},
                "share_radius": {name: bank.share_radius for name, bank in record.banks.items()},
                "sent_rows": record.sent_rows,
            }
            for client, record in state.clients.items()
        },
        "traffic": {
            "stages": Stages.dump_python(state.traffic.stages),
            "clients": {client: asdict(each) for client, each in state.traffic.clients.items()},
            "refused": Refusals.dump_python(state.traffic.refused),
        },
        "merge_seconds": state.merge_seconds,
    }


def _state(content: dict[str, Any], file: ModelFile) -> ServerState:
    banks = BankSet(
        {
            name: MergedBank(
                file.banks[name],
                file.frames.get(name),
                certificate=Certificate(**fields["certificate"]) if fields["certificate"] else None,
                log_scores=tuple(fields["log_scores"]) if fields["log_scores"] else None,
            )
            for name, fields in content["banks"].items()
        }
    )
    traffic = content["traffic"]
    return ServerState(
        round=content["round"],
        banks=banks,
        clients={int(c): _record(fields, banks) for c, fields in content["clients"].items()},
        traffic=Traffic(
            Stages.validate_python(traffic["stages"]),
            {int(client): ClientTraffic(**each) for client, each in traffic["clients"].items()},
            Refusals.validate_python(traffic["refused"]),
        ),
        merge_seconds=content["merge_seconds"],
    )


def _record(fields: dict[str, Any], banks: BankSet[MergedBank]) -> ClientRecord:
    """A client's record; the rows it sent are in the merged bank, which covers what it holds."""
    stats = {name: ClientStats(**counts) for name, counts in fields["stats"].items()}
    sent = {}
    for name, share_radius in fields["share_radius"].items():
        certificate = banks[name].certificate
        if certificate:
            rows = banks[name].features[:0]
            sent[name] = ClientBank(rows, certificate.radius_bound, share_radius, stats[name])
    return ClientRecord(stats, sent, fields["sent_rows"])
