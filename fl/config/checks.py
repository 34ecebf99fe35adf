"""Checks of settings: each by itself, then in combination."""

import difflib
from collections.abc import Collection, Iterable, Mapping

from pydantic import ValidationError

from fl.config.schema import FIELDS, ConfigError, Settings

RENAMED = {  # settings of earlier versions -> their names now
    "data.even-light": "data.normalize-brightness",
    "privacy.donated": "data.public-holdout",
}
NO_CODEBOOK = (
    "the codebook mechanisms were removed, since dp_gaussian was as good or better at every "
    "epsilon; set privacy.mechanism = dp_gaussian"
)
NO_LIMIT = (
    "removed; the clipping limits and budget parts of dp_gaussian are fields of GaussianSettings "
    "in src/privacy/mechanisms/gaussian.py"
)
CODEBOOK = ("cells", "lloyd-rounds", "residual-limit", "gaussian-part", "weights-part")
LIMITS = ("mean-limit", "near-limit", "square-limit", "centre-part", "near-part", "threshold-part")
REMOVED = {  # settings of earlier versions -> what to use instead
    "merge.components": "removed; set merge.encoding = int8 to send fewer bytes",
    **{f"privacy.{name}": NO_CODEBOOK for name in CODEBOOK},
    **{f"privacy.{name}": NO_LIMIT for name in LIMITS},
}
REMOVED_VALUES = {
    ("merge.budget", "equal"): "removed; use radius, or proportional, the default",
    ("privacy.mechanism", "dp_codebook"): NO_CODEBOOK,
    ("privacy.mechanism", "dp_gauss_codebook"): NO_CODEBOOK,
    ("privacy.mechanism", "legacy_embedding_noise"): (
        "noise on single vectors protects no image, so it is no mechanism; to see what it gives "
        "away, set privacy.mechanism = none and use fedpatchcore audit RUN_DIR --embedding-noise"
    ),
}


def check_settings(flat: Mapping[str, object]) -> Settings:
    """Settings from a mapping that has every key.

    Raises:
        ConfigError: unknown or missing keys, invalid values or contradictions; one message lists
            them all.
    """
    try:
        settings = Settings.model_validate(dict(flat))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None
    if problems := list(_contradictions(settings)):
        raise ConfigError("\n".join(problems))
    return settings


def _contradictions(s: Settings) -> Iterable[str]:
    if s.partition_kind == "attribute" and not s.partition_column and not s.partition_file:
        yield "partition.column: name the metadata column for partition.kind = attribute"
    if s.resume and not s.out:
        yield "resume: set out to the run directory to continue"
    if s.clients and s.min_clients > s.clients:
        yield f"min-clients = {s.min_clients}: there are only {s.clients} clients"
    if s.data_shared and s.data_kind != "synthetic" and not s.data_root:
        yield f"data.root: name the folder of the {s.data_kind} dataset"
    if s.partition_kind == "category" and s.model_scope == "object":
        yield (
            "model.scope = object: with partition.kind = category no two clients share an object, "
            "so there is nothing to merge; set model.scope = shared"
        )
    if s.privacy_mechanism != "none":
        yield from _privacy_contradictions(s)


def _privacy_contradictions(s: Settings) -> Iterable[str]:
    if s.privacy_noise == "seed" and not s.data_shared:
        yield (
            "privacy.noise = seed: anybody who knows the seed can remove the noise; use it in "
            "simulations only"
        )
    if (s.privacy_unit == "group") != bool(s.privacy_group):
        yield (
            "privacy.group: name the metadata column that forms the groups if privacy.unit = "
            "group, and leave it empty otherwise"
        )
    if s.data_public_holdout and not (s.data_shared and s.data_train_images):
        yield (
            "data.public-holdout: needs a simulation that sets data.train-images, since public "
            "images are drawn from what that leaves out"
        )
    if s.data_public_holdout and s.privacy_public_dir:
        yield "privacy.public-dir, data.public-holdout: set one of them, not both"


def explain_unknown(key: str, candidates: Collection[str] = FIELDS) -> str:
    """Why a key is no setting: it was renamed or removed, or looks like one of the candidates."""
    if key in RENAMED:
        return f"{key}: renamed to {RENAMED[key]}"
    if key in REMOVED:
        return f"{key}: {REMOVED[key]}"
    near = difflib.get_close_matches(key, candidates, 1)
    return f"{key}: unknown setting" + (f"; did you mean {near[0]}?" if near else "")


def _explain(error: Mapping) -> str:
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return explain_unknown(key)
    if error["type"] == "missing":
        return f"{key}: missing"
    value = error["input"]
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{key} = {value!r}: {REMOVED_VALUES.get((key, str(value)), reason)}"
