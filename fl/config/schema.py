"""The settings of a run: one flat list of keys, each with its type, bounds and description.

The same keys serve `flwr run --run-config`, configs/*.toml and `--set key=value`. The defaults
stand in pyproject.toml, where Flower reads them. `fedpatchcore settings` prints all of it, and
docs/reference/settings.md is its output. A key is the name of its field: `merge_max_rows` is
merge.max-rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core.core_schema import no_info_after_validator_function

from src.errors import UserError

if TYPE_CHECKING:
    from src.privacy.mechanisms.config import MechanismConfig

Scalar = str | int | float | bool

OWN_SIZE = re.compile(r"own(?:\*((?:0|[1-4])?\.?\d+))?")
LAYERS = ("layer1", "layer2", "layer3", "layer4")
SECTIONS = ("data", "partition", "model", "merge", "evaluate", "privacy", "cache")  # of the keys


class ConfigError(UserError, ValueError):
    """Settings that cannot be used; the message names the key, the value and what is allowed."""


def _image_size(text: str) -> str:
    parts = text.lower().split("x")
    is_size = len(parts) <= 2 and all(p.isdigit() and int(p) >= 32 for p in parts)
    if not is_size and not OWN_SIZE.fullmatch(text):
        raise ValueError(
            'must be a side in pixels such as "256", "HxW" from 32x32 up, "own", or a multiple of '
            'that such as "own*0.75"'
        )
    return text


def _layers(text: str) -> str:
    layers = text.split(",")
    for layer in layers:
        if layer not in LAYERS:
            raise ValueError(f"layer {layer!r} is unknown: layer1, layer2, layer3 and layer4 exist")
    if layers != sorted(set(layers)):
        raise ValueError("must name distinct layers, shallowest first, such as layer2,layer3")
    return text


@dataclass(frozen=True)
class PathSetting:
    """Marks a setting as a path, which may be empty or one of some keywords instead.

    The path must be absolute, because the apps run in a folder of their own.
    """

    keywords: tuple[str, ...] = ()

    def absolute(self, text: str) -> str:
        """The text as an absolute path; ~ is the user's home."""
        is_path = text and text not in self.keywords
        return str(Path(text).expanduser().absolute()) if is_path else text

    def _check(self, text: str) -> str:
        if text and text not in self.keywords and not Path(text).is_absolute():
            others = "".join(f" or {word}" for word in self.keywords)
            raise ValueError(f"must be an absolute path{others}, or empty")
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return no_info_after_validator_function(self._check, handler(source))


Text = Annotated[str, BeforeValidator(lambda v: str(v) if type(v) is int else v)]
AbsolutePath = Annotated[str, PathSetting()]
Affects = Literal["result", "repetition", "nothing"]


def _setting(description: str, affects: Affects = "result", **bounds: Any) -> Any:
    """Declare a setting.

    `affects` says what a run with another value is: another experiment ("result"); the same
    experiment with another seed, on another machine or with other reports ("repetition"); or the
    same run in another place ("nothing").
    """
    return Field(description=description, json_schema_extra={"affects": affects}, **bounds)


def _key(name: str) -> str:
    section, _, rest = name.partition("_")
    return (f"{section}.{rest}" if section in SECTIONS else name).replace("_", "-")


class Settings(BaseModel):
    """The checked settings of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=_key)

    seed: int = _setting(
        "Seed of the partition, of every selection and of all simulated noise.",
        "repetition",
        ge=0,
        lt=2**32,
    )
    clients: int = _setting(
        "Number of clients. 0 takes all connected nodes, or 4 in a simulation.", ge=0
    )
    min_clients: int = _setting(
        "Clients that must answer each exchange, or the run fails. 0 requires all of them.", ge=0
    )
    timeout: int = _setting(
        "Seconds that the server waits for the clients in each exchange.", "nothing", ge=1
    )
    num_server_rounds: int = _setting(
        "Rounds. After the first, clients send only rows that the merged bank does not cover yet.",
        ge=1,
        le=1000,
    )
    engine: Literal["ray", "inline"] = _setting(
        "How a simulation runs: ray is Flower's simulation engine; inline runs one client after "
        "another in this process.",
        "nothing",
    )
    cpus_per_client: int = _setting(
        "CPU threads of each client. The last bits of a bank depend on it.", "repetition", ge=1
    )
    gpus_per_client: float = _setting(
        "Share of a GPU that each simulated client reserves.", "repetition", ge=0
    )
    out: AbsolutePath = _setting(
        "Run directory. If empty, a new one below outputs/, or below cache.dir in flwr run.",
        "nothing",
    )
    resume: bool = _setting("Continue from the merged bank in the run directory.", "nothing")

    data_kind: Literal["synthetic", "autovi", "folder", "visa"] = _setting(
        "Layout of the data set: folder is that of MVTec AD; synthetic generates images."
    )
    data_root: AbsolutePath = _setting(
        "Folder of the data set. Required unless data.kind is synthetic."
    )
    data_objects: str = _setting("Objects to use, comma-separated, or all.", min_length=1)
    data_train_images: int = _setting(
        "Training images used of each object, drawn by the seed. 0 uses all.", ge=0
    )
    data_public_holdout: int = _setting(
        "In a simulation of a private run: training images of each object that count as public, "
        "drawn from those that data.train-images leaves out. Replaces privacy.public-dir.",
        ge=0,
    )
    data_image_size: Annotated[Text, AfterValidator(_image_size)] = _setting(
        "Size that images are resized to, in pixels: a side such as 256, HxW, own to keep their "
        "size, or a multiple of it such as own*0.75."
    )
    data_crop: int = _setting(
        "Side of a centre crop after resizing, in pixels. 0 does not crop.", ge=0
    )
    data_normalize_brightness: bool = _setting(
        "Bring all images to the same brightness and contrast, where the lighting varies."
    )
    data_shared: bool = _setting(
        "true: all clients share data.root, which is partitioned among them. false: each node has "
        "its own data, named by data-root in its node configuration."
    )

    partition_kind: Literal["iid", "category", "attribute", "dirichlet", "quantity"] = _setting(
        "How training images are divided among clients: evenly (iid), by object (category), by a "
        "metadata column (attribute), by Dirichlet shares of each object or column value "
        "(dirichlet), or into Dirichlet amounts (quantity)."
    )
    partition_column: str = _setting(
        "Metadata column for attribute; for dirichlet it replaces the object."
    )
    partition_alpha: float = _setting(
        "Dirichlet concentration for dirichlet and quantity; smaller is more skewed.", gt=0
    )
    partition_minimum: int = _setting(
        "Training images that each client gets at least, for dirichlet and quantity.", ge=0
    )
    partition_file: AbsolutePath = _setting(
        "A partition.json to use in place of a computed partition."
    )

    model_scope: Literal["object", "shared"] = _setting(
        "object: one memory bank for each object; shared: one for all objects."
    )
    model_backbone: str = _setting(
        "Feature network: wide_resnet50_2, resnet50, efficientnet_b4, efficientnet_lite0, or any "
        "timm model that gives features.",
        min_length=1,
    )
    model_layers: Annotated[str, AfterValidator(_layers)] = _setting(
        "Layers that patch features are taken from, comma-separated."
    )
    model_weights: Annotated[str, PathSetting(("random",))] = _setting(
        "Backbone weights: empty for the published (or packaged) ones, random, or the absolute "
        "path of a local file."
    )
    model_coreset_percentage: float = _setting(
        "Fraction of patches kept in the memory bank: 0.1 keeps one in ten.", gt=0, le=1
    )
    model_neighbors: int = _setting(
        "Neighbours b in the re-weighting of the image score (PatchCore, equation 7). 1 turns it "
        "off.",
        ge=1,
    )
    model_border: int = _setting(
        "Rows of patches along each side of an image that its image score ignores.", ge=0
    )
    model_memory_limit_mb: int = _setting(
        "MiB that features may take during coreset selection. 0 means 2048 on a CPU, and 60 % of "
        "the free memory on a GPU.",
        "repetition",
        ge=0,
    )

    merge_protocol: str = _setting(
        "What a round does. coreset: clients send coresets of what the merged bank does not cover, "
        "an equal part of it each round. exact: clients send their farthest patches until the bank "
        "is the one that centralized selection gives, in at most num-server-rounds rounds. A "
        "protocol of your own goes by the name it registers.",
        min_length=1,
    )
    merge_oversample: float = _setting(
        "Rows that all clients send in all rounds together, as a multiple of the merged bank.", ge=1
    )
    merge_budget: Literal["proportional", "radius"] = _setting(
        "How the first round's rows are divided among clients: proportional to their patches, or "
        "by the one covering radius that uses up all rows. Later rounds always use radius."
    )
    merge_encoding: Literal["float32", "float16", "int8"] = _setting(
        "Precision of the values that clients send."
    )
    merge_max_rows: int = _setting(
        "Rows that a client may send at most; larger uploads are refused.", ge=1
    )
    merge_max_mb: int = _setting(
        "MiB that a client may send at most; larger uploads are refused.", ge=1
    )

    evaluate_baselines: bool = _setting(
        "Also evaluate each client's own bank, and the centralized bank if data.shared is true.",
        "repetition",
    )
    evaluate_false_alarm_rate: float = _setting(
        "Fraction of normal images that the threshold flags as anomalous.", "repetition", gt=0, lt=1
    )
    evaluate_maps: bool = _setting(
        "Write the anomaly maps of the test images to the run directory.", "repetition"
    )
    evaluate_baseline_dir: AbsolutePath = _setting(
        "Folder in which runs with the same data and model share centralized baselines.", "nothing"
    )

    privacy_mechanism: Literal["none", "dp_gaussian"] = _setting(
        "none, or dp_gaussian: a differentially private Gaussian of the patches replaces the bank."
    )
    privacy_unit: Literal["image", "group", "client"] = _setting(
        "The protected record: an image, all images of one value of privacy.group, or a client."
    )
    privacy_group: str = _setting(
        "Metadata column whose values form the groups of privacy.unit = group."
    )
    privacy_adjacency: Literal["null", "replace"] = _setting(
        "The change to a record that must be hard to detect: leaving it out (null), or replacing "
        "it by anything else (replace)."
    )
    privacy_epsilon: float = _setting("Privacy budget ε of all releases together.", gt=0, le=1000)
    privacy_delta: float = _setting(
        "Privacy budget δ of all releases together; must be below 1 / number of records.",
        gt=0,
        lt=1,
    )
    privacy_ledger: AbsolutePath = _setting(
        "Ledger file that runs on the same images share. If empty, the run directory's own.",
        "repetition",
    )
    privacy_noise: Literal["system", "seed"] = _setting(
        "Source of the noise: the system's randomness, or the seed. Noise from the seed can be "
        "removed by anybody who knows it, so it is for simulations only."
    )
    privacy_public_dir: AbsolutePath = _setting(
        "Folder of public images of the object, or of one folder for each object. They improve a "
        "private bank at no cost in ε."
    )

    cache_dir: AbsolutePath = _setting(
        "Folder for cached features and generated data. If empty, the user's cache folder.",
        "nothing",
    )
    track: Literal["", "tensorboard", "mlflow"] = _setting(
        "Tracker that gets the metrics as well. If empty, none.", "nothing"
    )

    @property
    def cache(self) -> Path:
        """The cache folder."""
        return Path(self.cache_dir or platformdirs.user_cache_dir("fedpatchcore"))

    @property
    def has_public(self) -> bool:
        """Whether there are public images."""
        return bool(self.privacy_public_dir or self.data_public_holdout)

    @property
    def mechanism(self) -> MechanismConfig | None:
        """The private mechanism, or None for an ordinary run."""
        if self.privacy_mechanism != "dp_gaussian":
            return None
        from src.privacy.mechanisms.config import MechanismConfig

        return MechanismConfig(
            self.privacy_epsilon, self.privacy_delta, self.privacy_unit, self.privacy_adjacency
        )

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) that images are resized to; None for their own size, times `image_scale`."""
        if self.data_image_size.startswith("own"):
            return None
        parts = [int(p) for p in self.data_image_size.lower().split("x")]
        return parts[0], parts[-1]

    @property
    def image_scale(self) -> float:
        """Factor by which the images' own sides are multiplied."""
        return float(self.data_image_size.partition("*")[2] or 1)

    def flat(self) -> dict[str, Scalar]:
        """The settings by key, in the form of Flower's run config."""
        return self.model_dump(by_alias=True)


FIELDS = {str(field.alias): field for field in Settings.model_fields.values()}  # by key


def affects(key: str) -> Affects:
    """What a setting affects; settings of other versions count as affecting the result."""
    extra = FIELDS[key].json_schema_extra if key in FIELDS else None
    return extra["affects"] if isinstance(extra, dict) else "result"  # type: ignore[return-value]


def identity(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The settings that a run's result or report depends on: equal for two runs that are one."""
    return {key: value for key, value in settings.items() if affects(key) != "nothing"}
