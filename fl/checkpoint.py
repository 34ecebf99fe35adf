"""The merged bank, kept as soon as it is there: a run that breaks off later goes on from it.

model.safetensors is the model already, but for its thresholds; round.json says who sent what.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fl.config import ConfigError
from fl.messages import Upload
from fl.strategy import FederatedPatchCore
from src.banks import ClientBank
from src.files import write_whole
from src.merge import MergedBank
from src.models.model_file import ModelFile

MODEL, ROUND = "model.safetensors", "round.json"
VERSION = 1


def keep_merge(strategy: FederatedPatchCore, out: Path) -> None:
    """Write what `take_up_merge` reads; the model first, so that round.json vouches for it."""
    banks = {name: bank.features for name, bank in strategy.merged.items()}
    (out / ROUND).unlink(missing_ok=True)  # of an earlier merge
    strategy.model.as_file(banks, {}).write(out / MODEL)
    content = {
        "version": VERSION,
        "uploads": [_described(upload) for _, upload in sorted(strategy.uploads.items())],
        "upload_bytes": [list(pair) for pair in sorted(strategy.upload_bytes.items())],
        "merged": {
            name: {"radius": bank.radius, "radius_bound": bank.radius_bound}
            for name, bank in strategy.merged.items()
        },
        "refused": strategy.refused,
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
    strategy.uploads = {given["client"]: _upload(given) for given in content["uploads"]}
    strategy.upload_bytes = dict(content["upload_bytes"])
    strategy.merged = {
        name: MergedBank(model.banks[name], radii["radius"], radii["radius_bound"])
        for name, radii in content["merged"].items()
    }
    strategy.refused = content["refused"]
    strategy.seconds = content["seconds"]


def _described(upload: Upload) -> dict[str, Any]:
    banks = {
        name: {**asdict(bank), "features": [*bank.features.shape, str(bank.features.dtype)]}
        for name, bank in upload.banks.items()
    }
    return {**vars(upload), "banks": banks}


def _upload(given: dict[str, Any]) -> Upload:
    banks = {}
    for name, fields in given["banks"].items():
        rows, dim, dtype = fields.pop("features")
        absent = np.broadcast_to(np.zeros(1, dtype), (rows, dim))  # its shape without its memory
        banks[name] = ClientBank(features=absent, **fields)
    return Upload(**{**given, "banks": banks})
