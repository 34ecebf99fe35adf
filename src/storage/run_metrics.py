"""The schema of metrics.json: what the writer fills in and every reader gets.

A key whose field has a default is left out of the file where it holds that default, so a value
that a run does not have is absent. A key without a default is always there.
"""

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.storage.atomic import write_whole
from src.storage.tensor_file import FileError

FILE_NAME = "metrics.json"

Scalar = bool | int | float | str


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, populate_by_name=True, protected_namespaces=()
    )


class MetricSet(_Part):
    """Metrics of one bank on one test set, each in [0, 1].

    Image metrics need normal and anomalous images; pixel metrics need masks. The keys of
    `au_spro` are false-positive rates, such as "0.05".
    """

    image_auroc: float | None = None
    image_ap: float | None = None
    image_f1_max: float | None = None
    pixel_auroc: float | None = None
    aupro: float | None = None
    aupro_005: float | None = Field(None, alias="aupro_0.05")
    au_spro: dict[str, float] | None = None


class CentralizedMetrics(MetricSet):
    """Metrics of the centralized bank, and its covering radius (the largest, of several banks)."""

    radius: float | None = None


class _Number(_Part):
    client: int


class _Client(_Number):
    images: int  # training images
    patches: int
    bank: int  # rows of its own coreset
    sent: int  # rows it sent
    radius: float | None = None  # covering radius of its own coreset


class LocalClient(MetricSet, _Client):
    """What one client holds, and how its own bank does on the test images."""


class WorstClient(MetricSet, _Number):
    """The client whose own bank has the lowest image AUROC."""


class LocalMetrics(_Part):
    """Each client alone; `mean` and `worst` are over those that scored their own bank."""

    clients: list[LocalClient] = []
    mean: MetricSet | None = None
    worst: WorstClient | None = None
    test_images: str = ""  # which images the local banks were tested on, in words


class BankInfo(_Part):
    """A merged bank. Of several: rows and bytes add up, radii are the largest."""

    size: int  # rows
    dim: int
    dtype: str
    bytes: int
    radius_bound: float | None = None  # no training patch is farther from the bank
    radius: float | None  # as the clients measured it; None where one did not
    exact: int = 0  # leading rows known to be the centralized ones


class ObjectMetrics(_Part):
    """What the top-level keys of the same names hold, for one object."""

    federated: MetricSet | None = None
    centralized: MetricSet | None = None
    bank: BankInfo | None = None
    local: LocalMetrics | None = None


class ClientAuroc(_Part):
    client: int
    image_auroc: float


class Fairness(_Part):
    """Image AUROC of the merged bank on each client's own test images."""

    clients: list[ClientAuroc] = []
    worst: float | None = None
    worst_client: int | None = None
    gap: float | None = None  # between the best and the worst client
    jain: float | None = None  # Jain's index


class Stage(_Part):
    """One exchange with the clients: bytes from all of them (up) and to each (down)."""

    round: int
    stage: str
    up: int
    down: int


class Traffic(_Part):
    upload_bytes: list[int]  # of each client, before the evaluation
    broadcast_bytes: int  # to each client, over all stages
    stages: list[Stage]


class Seconds(_Part):
    """Seconds by stage: of the slowest client (`seconds`), or of all together (`work`)."""

    features: float
    coreset: float
    merge: float
    evaluate: float
    local: float
    centralized: float | None = None
    total: float | None = None


class Refusal(_Part):
    """A client left out: its number, or the name of its node, and why."""

    client: int | str
    reason: str


class ReleaseInfo(_Part):
    """One release of the ledger; `mu` is None where it has no noise."""

    name: str
    bank: str
    what: str
    mu: float | None


class PrivacyReport(_Part):
    """What was guaranteed to whom. Only `mechanism` and `guarantee` where nothing is private."""

    mechanism: str
    guarantee: str
    unit: str | None = None
    adjacency: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    budget: float | None = None
    records: int | None = None
    noise: str | None = None
    trust: str | None = None
    caution: str | None = None
    releases: list[ReleaseInfo] | None = None


class DatasetInfo(_Part):
    name: str
    objects: list[str]
    train_images: int
    test_images: int


class Heterogeneity(_Part):
    """How much the clients' training images differ, each from 0 (not at all) to 1."""

    size_skew: float
    value_skew: float | None = None
    feature_shift: float | None = None


class RunMetrics(_Part):
    """The content of metrics.json. With several objects, metrics are means over them."""

    config: dict[str, Scalar]
    local: LocalMetrics
    bank: BankInfo
    fairness: Fairness
    traffic: Traffic
    seconds: Seconds
    work: Seconds
    threshold: float | dict[str, float]  # one number for a shared bank, else one an object
    refused: list[Refusal]
    privacy: PrivacyReport
    versions: dict[str, str]
    seed: int
    comparators: dict[str, MetricSet] = {}
    federated: MetricSet | None = None
    centralized: CentralizedMetrics | None = None
    objects: dict[str, ObjectMetrics] = {}
    dataset: DatasetInfo | None = None
    heterogeneity: Heterogeneity | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a metrics.json.

        Raises:
            FileNotFoundError: no such file.
            FileError: not JSON, or a key is missing, unknown or ill-typed; names file and key.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            where = f"{path}, {key}" if key else str(path)
            raise FileError(f"{where}: {first['msg']}") from None

    def content(self) -> dict:
        """The file's content as plain dicts and lists."""
        return self.model_dump(by_alias=True, exclude_defaults=True)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all; folders are made as needed."""
        write_whole(path, json.dumps(self.content(), indent=2) + "\n")
