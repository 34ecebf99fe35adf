"""What an audit attacks: the banks of a finished simulation run, and what the attacker knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl.client.node import PARTITION
from fl.config import ConfigError, Settings, check_settings, default_settings, read_config
from fl.server.checkpoint import MODEL
from fl.server.ledger_store import LEDGER, REPLIES, read_replies
from fl.setup.data import Split, open_split
from fl.setup.model import build_model
from fl.setup.public import images_below, public_patches
from fl.workspace.directory import CONFIG, METRICS
from src.data import DataError, InspectionDataset
from src.data.partition import Partition
from src.federated.bank_set import split_by_bank
from src.models import FileError, PatchCore
from src.models.feature_transform import FeatureTransform
from src.models.model_file import ModelFile
from src.privacy.attacks.embedding_noise import add_embedding_noise, sigma_for_vector, unit_rows
from src.privacy.attacks.membership import Bank
from src.privacy.ledger import Ledger, read_ledger
from src.privacy.mechanisms.config import MechanismConfig
from src.privacy.noise import system_noise
from src.privacy.runner import NoisySums, PrivacyParams, Step, replay
from src.storage.run_metrics import RunMetrics

MIN_OTHERS = 10  # normal test images of a bank
MAX_BYTES = 8_000_000_000  # of memory for the vectors of all images in one step, twice


@dataclass(frozen=True)
class FinishedRun:
    """A finished simulation run with its data; `ledger` is None without a mechanism."""

    folder: Path
    settings: Settings
    model: PatchCore
    data: Split
    partition: Partition
    file: ModelFile
    ledger: Ledger | None
    metrics: RunMetrics

    def refusal(self, reason: object) -> ConfigError:
        """The error that says why the run cannot be audited."""
        return ConfigError(f"{self.folder} cannot be audited: {reason}")


@dataclass(frozen=True)
class Subject:
    """One bank of a run, and what an attack on it needs."""

    name: str  # of the bank
    settings: Settings
    model: PatchCore
    # the images that the bank was made from, by client; no client without images
    train: Sequence[InspectionDataset]
    test: InspectionDataset  # all test images of the bank
    own: InspectionDataset  # images that the attacker holds
    own_public: bool  # whether those are public; otherwise they are normal test images
    bank: Bank  # the released bank
    delta: float  # δ of the bounds
    params: PrivacyParams | None = None  # of a private mechanism
    # of a private mechanism, with the noisy sums that were released
    steps: Sequence[tuple[Step, NoisySums]] = ()
    public: np.ndarray | None = None  # patches of public images that the mechanism used, or None
    # ε that noise on the bank's vectors claims for one vector; 0 without noise
    noise_epsilon: float = 0.0

    @property
    def members(self) -> InspectionDataset:
        """All images that the bank was made from."""
        union = self.train[0].select([])
        union.samples = [sample for share in self.train for sample in share.samples]
        return union

    @property
    def others(self) -> InspectionDataset:
        """The normal test images."""
        return normal_images(self.test)

    @property
    def noise_sigma(self) -> float:
        """Standard deviation of the noise on the bank's vectors."""
        return sigma_for_vector(self.noise_epsilon, self.delta)

    @property
    def audits(self) -> list[str]:
        """The audits that apply. The one-run audit guesses which images were left out."""
        mechanism = self.settings.mechanism
        if mechanism is None:
            return ["many_run", "one_run"] if self.noise_epsilon else ["one_run"]
        left_out = (mechanism.unit, mechanism.adjacency) == ("image", "null")
        return ["many_run", "one_run"] if left_out else ["many_run"]


def normal_images(images: InspectionDataset) -> InspectionDataset:
    """The images without a defect."""
    return images.select([i for i, sample in enumerate(images.samples) if not sample.label])


def open_finished_run(folder: Path) -> FinishedRun:
    """Open a run directory, and the data that the run used.

    Raises:
        ConfigError: it is not one of a finished simulation, or its data or weights have changed.
    """
    for name in (CONFIG, METRICS, PARTITION, MODEL):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} is no finished run: it has no {name}")
    settings = check_settings(default_settings() | read_config(folder / CONFIG))
    if not settings.data_shared:
        raise ConfigError(
            f"{folder} is of a federation whose data lie with the nodes (data.shared = false): an "
            "audit needs the training images, so it is of simulations"
        )
    model = build_model(settings)
    try:
        data = open_split(settings)
        partition = Partition.load(folder / PARTITION)
        partition.check(data.train.samples, data.test.samples)
        file = ModelFile.read(folder / MODEL)
        if model.backbone.fingerprint != file.fingerprint:
            raise ValueError("its model was made with other weights")
        path = Path(settings.privacy_ledger) if settings.privacy_ledger else folder / LEDGER
        if settings.mechanism and not path.is_file():
            raise ValueError(f"its ledger {path} is not there")
        ledger = read_ledger(path) if settings.mechanism else None
        metrics = RunMetrics.read(folder / METRICS)
    except (DataError, FileError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be audited: {error}") from error
    return FinishedRun(folder, settings, model, data, partition, file, ledger, metrics)


def open_subjects(run: FinishedRun, public: Path | None, seed: int) -> list[Subject]:
    """The banks of a run, ready to attack.

    Args:
        run: which.
        public: a folder of images that the attacker holds; None for half of the normal test images.
        seed: chooses that half.

    Raises:
        ConfigError: there are too few test images, or what the run left does not belong together.
    """
    clients = [client.client for client in run.metrics.local.clients]
    scope = run.settings.model_scope
    shares = [
        split_by_bank(run.data.share(run.partition, client).train, scope) for client in clients
    ]
    tests = split_by_bank(run.data.test, scope)
    subjects = []
    for number, (name, rows) in enumerate(sorted(run.file.banks.items())):
        test = tests.get(name, run.data.test.select([]))
        others = normal_images(test)
        if len(others) < MIN_OTHERS:
            raise run.refusal(
                f"{name} has {len(others)} normal test images, and an audit compares with "
                f"{MIN_OTHERS} at least"
            )
        order = np.random.default_rng([seed, number, 1]).permutation(len(others))
        half = others.select(order[: len(others) // 2])
        own = images_below(public, name, "--public") if public else half
        subject = Subject(
            name=name,
            settings=run.settings,
            model=run.model,
            train=[share[name] for share in shares if name in share],
            test=test,
            own=own,
            own_public=public is not None,
            bank=(rows, run.file.transforms.get(name)),
            delta=run.ledger.budget.delta if run.ledger else run.settings.privacy_delta,
        )
        mechanism = run.settings.mechanism
        subjects.append(_with_steps(run, mechanism, subject) if mechanism else subject)
    return subjects


def with_embedding_noise(
    run: FinishedRun, subjects: Sequence[Subject], epsilon: float
) -> list[Subject]:
    """The banks of an ordinary run with noise on each vector, for a claim of ε for one vector.

    Raises:
        ConfigError: the run is private.
    """
    if run.settings.mechanism:
        raise ConfigError(
            f"--embedding-noise: {run.folder} is a private run; name one with "
            "privacy.mechanism = none, whose bank holds patches as they are"
        )

    def add_noise(subject: Subject) -> Bank:
        sigma = sigma_for_vector(epsilon, subject.delta)
        rows = add_embedding_noise(unit_rows(subject.bank[0]), sigma, system_noise)
        return rows, FeatureTransform()

    return [replace(s, bank=add_noise(s), noise_epsilon=epsilon) for s in subjects]


def _with_steps(run: FinishedRun, mechanism: MechanismConfig, subject: Subject) -> Subject:
    """Add the steps of a private run, replayed from its noisy sums."""
    name, path = subject.name, run.folder / REPLIES
    if not path.is_file():
        raise ConfigError(f"{run.folder} is no finished run: it has no {REPLIES}")
    public = public_patches(run.settings, run.model, name)
    try:
        recorded = read_replies(path)
        replies = [exchange[name] for exchange in recorded.exchanges if name in exchange]
        fresh = mechanism.start(run.model.backbone.get_feature_dim(), public)
        steps, bank = replay(fresh, replies)
    except (FileError, ValueError) as error:
        raise run.refusal(error) from error
    rows, transform = subject.bank
    if transform is None or not (_close(bank.rows, rows) and _close(bank.basis, transform.basis)):
        raise run.refusal(
            f"the answers in {REPLIES} do not give the bank {name} here; audit it with the "
            "settings, and on a machine, like those of the run"
        )
    counts = {reply.records for reply in replies}
    if mechanism.unit == "image" and counts != {len(subject.members)}:
        raise run.refusal(
            f"its answers are of {min(counts)} images of {name}, and its clients hold "
            f"{len(subject.members)}: one was lost on the way"
        )
    largest = max(sum(block.size for block in step.query.blocks) for step, _ in steps)
    needed = 2 * 8 * largest * (len(subject.members) + len(subject.others))
    if needed > MAX_BYTES:
        raise run.refusal(
            f"what the images of {name} give would take {needed / 1e9:.0f} GB of memory, and an "
            f"audit takes {MAX_BYTES / 1e9:.0f}"
        )
    params = mechanism.params(recorded.mu, len(run.file.banks))
    return replace(subject, params=params, steps=steps, public=public)


def _close(one: np.ndarray, other: np.ndarray | None) -> bool:
    """Whether two arrays are equal up to single precision."""
    if other is None or one.shape != other.shape:
        return False
    scale = max(float(np.abs(one).max()), 1.0)
    return np.allclose(one, other, rtol=1e-3, atol=1e-4 * scale)
