"""The merged bank, kept as soon as it is there: a run that breaks off later goes on from it.

model.safetensors is the model already, but for its thresholds; round.json says who sent what.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.config import ConfigError
from fl.server.strategy import FederatedPatchCore
from fl.wire.messages import Sender, Upload
from src.federated.merge import MergedBank
from src.federated.types import ClientBank, Holding
from src.models.model_file import ModelFile
from src.storage.atomic import write_whole

MODEL, ROUND = "model.safetensors", "round.json"
VERSION = 3
FIGURES = ("radius", "radius_bound", "exact", "scores")  # of a merge, beside its rows


def keep_merge(strategy: FederatedPatchCore, out: Path) -> None:
    """Write what `take_up_merge` reads; the model first, so that round.json vouches for it."""
    banks = {name: bank.features for name, bank in strategy.merged.items()}
    (out / ROUND).unlink(missing_ok=True)  # of an earlier merge
    strategy.model.as_file(banks, {}, strategy.frames).write(out / MODEL)
    content = {
        "version": VERSION,
        "round": strategy.done,
        "uploads": [_described(upload) for _, upload in sorted(strategy.uploads.items())],
        "clients": {
            client: {
                "rows": strategy.sent[client],
                "bytes": strategy.intake.upload_bytes[client],
                "seconds": strategy.client_seconds[client],
            }
            for client in sorted(strategy.uploads)
        },
        "merged": {
            name: {part: getattr(bank, part) for part in FIGURES}
            for name, bank in strategy.merged.items()
        },
        "stages": strategy.intake.stages,
        "refused": strategy.intake.refused,
        "seconds": strategy.seconds,
    }
    write_whole(out / ROUND, json.dumps(content, indent=1) + "\n")


def take_up_merge(strategy: FederatedPatchCore, out: Path) -> None:
    """Put a strategy where it was after the merge. What clients sent is not kept, only its counts.

    Raises:
        ConfigError: no merge was kept there, or it is of another backbone or version.
    """
    try:
        content = json.loads((out / ROUND).read_text("utf-8"))
        model = ModelFile.read(out / MODEL)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{out} holds no merged bank to go on from: the run broke off before; start it anew"
        ) from error
    if content["version"] != VERSION:
        raise ConfigError(
            f"{out / ROUND} is of version {content['version']}, this program reads {VERSION}"
        )
    ours = strategy.model.backbone.fingerprint
    if model.fingerprint != ours:
        raise ConfigError(f"{out} is of another backbone ({model.fingerprint}, here {ours})")
    strategy.merged = {
        name: MergedBank(model.banks[name], **figures, frame=model.frames.get(name))
        for name, figures in content["merged"].items()
    }
    # a round that took in new images comes after the others again
    strategy.done = min(content["round"], strategy.settings.num_server_rounds)
    uploads = [_upload(given, strategy.merged) for given in content["uploads"]]
    strategy.uploads = {upload.sender.client: upload for upload in uploads}
    strategy.set_merged_clients()
    clients = {int(client): given for client, given in content["clients"].items()}
    strategy.sent = {client: given["rows"] for client, given in clients.items()}
    strategy.intake.upload_bytes = {client: given["bytes"] for client, given in clients.items()}
    strategy.client_seconds = {client: given["seconds"] for client, given in clients.items()}
    strategy.intake.stages = content["stages"]
    strategy.intake.refused = content["refused"]
    strategy.seconds = content["seconds"]


def _described(upload: Upload) -> dict[str, Any]:
    banks = {
        name: {"radius": bank.radius, "share_radius": bank.share_radius, **vars(bank.holding)}
        for name, bank in upload.banks.items()
    }
    return {**vars(upload.sender), "banks": banks}


def _upload(given: dict[str, Any], merged: Mapping[str, MergedBank]) -> Upload:
    """What a client sent, without its rows: what it holds lies around the merged bank."""
    banks = {}
    for name, fields in given.pop("banks").items():
        holding = Holding(fields["images"], fields["patches"], fields["share"])
        nothing, bound = merged[name].features[:0], merged[name].radius_bound
        banks[name] = ClientBank(nothing, bound, fields["share_radius"], holding)
    return Upload(Sender(**given), banks)
