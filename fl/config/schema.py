"""Settings: one flat list of keys, their meaning and bounds. Defaults stand in pyproject.toml.

The same keys serve `flwr run --run-config`, configs/*.toml and `fedpatchcore simulate --set`.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from src.errors import UserError
from src.federated.allocation import Budget
from src.federated.codec import Coding, Encoding
from src.privacy.ledger import Adjacency, Unit
from src.privacy.mechanisms.config import Plan

Scalar = str | int | float | bool

OWN_SIZE = re.compile(r"own(?:\*((?:0|[1-4])?\.?\d+))?")
NO_CODEBOOK = (
    "the codebook mechanisms were removed, since dp_gaussian was as good or better at every "
    "epsilon; set privacy.mechanism = dp_gaussian"
)
REMOVED_MECHANISMS = {
    "dp_codebook": NO_CODEBOOK,
    "dp_gauss_codebook": NO_CODEBOOK,
    "legacy_embedding_noise": (
        "noise on single vectors protects no image, so it is no mechanism; to see what it gives "
        "away, set privacy.mechanism = none and use fedpatchcore audit RUN_DIR --embedding-noise"
    ),
}


class ConfigError(UserError, ValueError):
    """Settings that cannot be used; the message names key, value and what is allowed."""


def _image_size(text: str) -> str:
    parts = text.lower().split("x")
    sides = len(parts) <= 2 and all(p.isdigit() and int(p) >= 32 for p in parts)
    if not sides and not OWN_SIZE.fullmatch(text):
        raise ValueError(
            'must be a side in pixels such as "256", "HxW" from 32x32 up, "own", or a multiple of '
            'that such as "own*0.75"'
        )
    return text


def _layers(text: str) -> str:
    from src.models.backbone import layer_stride  # and with it torch: not for a health check

    strides = [layer_stride(layer) for layer in text.split(",")]
    if strides != sorted(set(strides)):
        raise ValueError("must name distinct layers, shallowest first, such as layer2,layer3")
    return text


def _absolute(text: str) -> str:
    if text and not Path(text).is_absolute():
        raise ValueError("must be an absolute path: the apps run in a folder of their own")
    return text


def _mechanism(name: str) -> str:
    if name in REMOVED_MECHANISMS:
        raise ValueError(REMOVED_MECHANISMS[name])
    return name


Text = Annotated[str, BeforeValidator(lambda v: str(v) if type(v) is int else v)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]


def _key(name: str, **bounds: object) -> Any:
    return Field(alias=name, **bounds)  # type: ignore[call-overload]


class Settings(BaseModel):
    """A run's settings, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = _key("seed", ge=0, lt=2**32)
    # clients of the federation; 0: as many as there are nodes. Of these, as many as min-clients
    # (0: all) must come through; timeout bounds each exchange, in seconds.
    clients: int = _key("clients", ge=0)
    min_clients: int = _key("min-clients", ge=0)
    timeout: int = _key("timeout", ge=1)
    # in rounds after the first, clients send only what the merged bank does not cover yet
    num_server_rounds: int = _key("num-server-rounds", ge=1, le=1000)
    # ray: Flower's simulation engine; inline: this process, one client after another
    engine: Literal["ray", "inline"] = _key("engine")
    cpus_per_client: int = _key("cpus-per-client", ge=1)
    gpus_per_client: float = _key("gpus-per-client", ge=0)
    # the run directory; "": one made below cache.dir
    out: AbsolutePath = _key("out")
    # go on from the merged bank that an earlier run left in `out`
    resume: bool = _key("resume")

    data_kind: Literal["synthetic", "autovi", "folder", "visa"] = _key("data.kind")
    data_root: AbsolutePath = _key("data.root")
    # comma-separated, or all
    data_objects: str = _key("data.objects", min_length=1)
    # of each object at most so many training images, drawn by the seed; 0: all
    data_train_images: int = _key("data.train-images", ge=0)
    # side of a square, HxW, own, or a multiple of own such as own*0.75; then a centre crop of that
    # side (0: none)
    data_image_size: Annotated[Text, AfterValidator(_image_size)] = _key("data.image-size")
    data_crop: int = _key("data.crop", ge=0)
    # bring brightness and contrast of all images to the same values
    data_even_light: bool = _key("data.even-light")
    # true: server and clients see one data root, partitioned among the clients (simulation);
    # false: each node holds its own, named by data-root in its node config (deployment)
    data_shared: bool = _key("data.shared")

    partition_kind: Literal["iid", "category", "attribute", "dirichlet", "quantity"] = _key(
        "partition.kind"
    )
    # metadata column for attribute, and for dirichlet in place of the category
    partition_column: str = _key("partition.column")
    partition_alpha: float = _key("partition.alpha", gt=0)
    # training images each client gets at least
    partition_minimum: int = _key("partition.minimum", ge=0)
    # a partition.json to use as it is
    partition_file: AbsolutePath = _key("partition.file")

    # object: one bank an object; shared: one bank for all
    model_scope: Literal["object", "shared"] = _key("model.scope")
    model_backbone: str = _key("model.backbone", min_length=1)
    model_layers: Annotated[str, AfterValidator(_layers)] = _key("model.layers")
    # "": the published (or packaged) weights; random; or an absolute path of a local file
    model_weights: str = _key("model.weights")
    # a fraction: 0.1 keeps one patch in ten
    model_coreset_percentage: float = _key("model.coreset-percentage", gt=0, le=1)
    # b of the score's re-weighting; 1: off
    model_neighbors: int = _key("model.neighbors", ge=1)
    # rows of patches along each side of an image that do not count in its score
    model_border: int = _key("model.border", ge=0)
    # that features may take while a client selects; 0: 2048 on a CPU, 60 % of a GPU's free memory
    model_memory_limit_mb: int = _key("model.memory-limit-mb", ge=0)

    # coreset: clients send coresets of what is not covered, and each round brings an even part of
    # the bank; exact: they send the patches farthest from it, until the bank is the one that
    # centralized selection makes, in at most num-server-rounds rounds
    merge_protocol: Literal["coreset", "exact"] = _key("merge.protocol")
    # rows that the clients send in all rounds together, as a multiple of the merged bank's
    merge_oversample: float = _key("merge.oversample", ge=1)
    # who sends how many of them in the first round; later ones go by radius
    merge_budget: Budget = _key("merge.budget")
    # how rows travel; components: principal components a row is sent by, 0 for its own values
    merge_encoding: Encoding = _key("merge.encoding")
    merge_components: int = _key("merge.components", ge=0)
    # what one client may send at most; more is refused before it is looked at
    merge_max_rows: int = _key("merge.max-rows", ge=1)
    merge_max_mb: int = _key("merge.max-mb", ge=1)

    # local and centralized beside federated; centralized needs data.shared
    evaluate_baselines: bool = _key("evaluate.baselines")
    evaluate_false_alarm_rate: float = _key("evaluate.false-alarm-rate", gt=0, lt=1)
    evaluate_maps: bool = _key("evaluate.maps")
    # a folder where centralized baselines are kept, for other runs of the same data and model
    evaluate_baseline_dir: AbsolutePath = _key("evaluate.baseline-dir")

    # none; or dp_gaussian: bounds what each record tells, sums, and lets the server add noise
    privacy_mechanism: Annotated[Literal["none", "dp_gaussian"], BeforeValidator(_mechanism)] = (
        _key("privacy.mechanism")
    )
    # who is protected: an image, all images of one value of the metadata column privacy.group, or
    # a client; and what change must be hard to see: left out (null), or replaced by anything
    privacy_unit: Unit = _key("privacy.unit")
    privacy_group: str = _key("privacy.group")
    privacy_adjacency: Adjacency = _key("privacy.adjacency")
    # the budget of all releases together; delta must be below 1 / records
    privacy_epsilon: float = _key("privacy.epsilon", gt=0, le=1000)
    privacy_delta: float = _key("privacy.delta", gt=0, lt=1)
    # a ledger that several runs on the same images share; "": the run directory's own
    privacy_ledger: AbsolutePath = _key("privacy.ledger")
    # system: the machine's randomness; seed: noise that anybody can draw again, for simulations
    privacy_noise: Literal["system", "seed"] = _key("privacy.noise")
    # a folder of public images of the objects, or of folders named like the objects: they give the
    # Gaussian's centre, and what noise hides of its covariance
    privacy_public_dir: AbsolutePath = _key("privacy.public-dir")
    # in a simulation, in place of that: so many images of each object of those that
    # data.train-images leaves out
    privacy_donated: int = _key("privacy.donated", ge=0)

    # features and generated data; "": the user's cache folder
    cache_dir: AbsolutePath = _key("cache.dir")
    # where the figures go beside metrics.json; "": nowhere
    track: Literal["", "tensorboard", "mlflow"] = _key("track")

    @property
    def cache(self) -> Path:
        """The cache folder."""
        return Path(self.cache_dir or platformdirs.user_cache_dir("fedpatchcore"))

    def exact_in(self, server_round: int) -> bool:
        """Whether a round is one of the exact protocol; one that takes in new images never is."""
        return self.merge_protocol == "exact" and server_round <= self.num_server_rounds

    @property
    def coding(self) -> Coding:
        """How rows travel from clients to the server."""
        return Coding(self.merge_encoding, self.merge_components)

    @property
    def has_public(self) -> bool:
        """Whether there are public images."""
        return bool(self.privacy_public_dir or self.privacy_donated)

    @property
    def plan(self) -> Plan | None:
        """The private mechanism, if the run has one."""
        if self.privacy_mechanism != "dp_gaussian":
            return None
        return Plan(
            self.privacy_epsilon,
            self.privacy_delta,
            self.privacy_unit,
            self.privacy_adjacency,
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
        """What images' own sides are multiplied with."""
        found = OWN_SIZE.fullmatch(self.data_image_size)
        return float(found[1]) if found and found[1] else 1.0

    def flat(self) -> dict[str, Scalar]:
        """The settings by key, as a run config takes them."""
        return self.model_dump(by_alias=True)
