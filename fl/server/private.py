"""A private round, as the server runs it: ask for sums, add noise, make banks of what is public.

The clients' sums reach this process without noise, and leave it only with it: whoever runs the
server is trusted with them, and nobody else. No step looks at a single client's sums but to check
and add them, so that secure aggregation can take that place.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

from fl.config import ConfigError, Settings
from fl.server.ledger_store import LEDGER, Books
from fl.server.replies import RoundFailed
from fl.setup.inputs import open_public_holdout
from fl.wire.messages import check_size
from fl.wire.sums import unpack_sums
from src.data import InspectionDataset, Sample
from src.data.layout import list_images
from src.data.partition import Partition
from src.federated.candidates import SHARED, by_bank
from src.federated.merge import MergedBank
from src.federated.types import BankRefused
from src.models import PatchCore
from src.models.feature_transform import Frame
from src.privacy.ledger import guarantee
from src.privacy.mechanisms.config import Plan
from src.privacy.queries import Ask, added
from src.privacy.records import sampled_patches
from src.privacy.runner import (
    Noise,
    PrivateBank,
    Sums,
    run_mechanisms,
    seeded_noise,
    system_noise,
)

if TYPE_CHECKING:
    from fl.server.strategy import FederatedPatchCore

RAW = (
    "Guarantee: none. The bank holds patch features of training images as they are, and tells "
    "whoever has it which images those were."
)
TRUST = (
    "The server adds the noise: it sees the clients' sums without noise, and is trusted with them. "
    "Test images, and figures of them, are not protected; nor, in a simulation, is what stands "
    "beside the private bank for comparison."
)
NOISE = {
    "system": "from the system's own randomness",
    "seed": "from the seed, so that anybody can take it off again: for simulations only",
}
MOST_PUBLIC = 100_000  # patches of public images that are looked at

log = logging.getLogger("flwr")


class PrivateRound:
    """One private round of a strategy, once the clients have said what they hold.

    Args:
        strategy: whose clients are asked, and to whom their seconds are booked.
        grid: by which they are asked.
        number: of the round.
        books: where releases and answers are written down.
    """

    def __init__(
        self, strategy: "FederatedPatchCore", grid: Grid, number: int, books: Books
    ) -> None:
        self.strategy, self.grid, self.number, self.books = strategy, grid, number, books
        self.settings = strategy.settings
        self.images: dict[str, int] = {}  # of each bank
        for upload in strategy.uploads.values():
            for name, bank in upload.banks.items():
                self.images[name] = self.images.get(name, 0) + bank.holding.images
        self._asks: Mapping[str, Ask] = {}  # of this exchange,
        self._came: dict[int, dict[str, Sums]] = {}  # and what came of them

    def make_banks(self, plan: Plan) -> dict[str, MergedBank]:
        """Run the mechanism of each bank to its end.

        Raises:
            ConfigError: the budget cannot be for so many, or is spent; public images are missing.
            RoundFailed: too few clients came through.
        """
        settings, model, books = self.settings, self.strategy.model, self.books
        names = sorted(self.images)
        clients = len(self.strategy.uploads)
        records = clients if plan.unit == "client" else sum(self.images.values())
        dim = model.backbone.get_feature_dim()
        try:
            budget = plan.budget(records)
            replayable = settings.privacy_noise == "seed"
            terms = plan.terms(books.begin(f"{plan}, {names}", budget), len(names))
            terms = replace(terms, replayable=replayable)
            public = {name: public_patches(settings, model, name) for name in names}
            fresh = {name: plan.start(dim, public[name]) for name in names}
            books.open(budget, plan.releases(terms, fresh))
            if budget.caution:
                log.warning(budget.caution)
            banks = run_mechanisms(
                {name: plan.start(dim, public[name]) for name in names},
                self._ask,
                terms,
                noise_of(settings, books),
                books.note,
                had=books.had,
                keep=books.keep,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return {name: as_merged(banks[name]) for name in names}

    def _ask(self, asks: Mapping[str, Ask]) -> dict[str, Sums]:
        """What the clients' records add up to, in the order of the clients' numbers."""
        self._asks, self._came = asks, {}
        strategy = self.strategy
        messages = strategy.requests(MessageType.QUERY, self.number, asks=asks)
        replies = self.grid.send_and_receive(messages, timeout=self.settings.timeout)
        strategy.intake.take(replies, self._accept)
        strategy.intake.check_enough("gave its sums")
        found = {}
        for name in asks:
            parts = [sums[name] for _, sums in sorted(self._came.items()) if name in sums]
            if not parts:
                raise RoundFailed(f"no client that holds images of {name} gave its sums")
            vectors = added(part.vectors for part in parts)
            found[name] = Sums(vectors, sum(part.records for part in parts))
        return found

    def _accept(self, content: RecordDict) -> None:
        settings, strategy = self.settings, self.strategy
        check_size(content, settings.merge_max_rows, settings.merge_max_mb * 2**20)
        sender, sums = unpack_sums(content, self._asks)
        strategy.intake.check_sender(sender)
        known = strategy.uploads.get(sender.client)
        for name, found in sums.items():
            images = known.banks[name].holding.images if known and name in known.banks else 0
            least = images if settings.privacy_unit == "image" else 1
            most = 1 if settings.privacy_unit == "client" else images
            if not least <= found.records <= most:
                raise BankRefused(
                    f"its sums of {name} are of {found.records} records; it said that it holds "
                    f"{images} images"
                )
        self._came[sender.client] = sums
        strategy.add_seconds(sender)


def open_books(settings: Settings, out: Path) -> Books | None:
    """The books of a run that has a mechanism.

    Raises:
        ConfigError: the ledger cannot be read, or its budget is spent; or the run has none, and
            would release beside a private run what that protects.
    """
    if settings.privacy_mechanism == "none":
        if (out / LEDGER).exists():
            raise ConfigError(
                f"{out} holds the ledger of a private run: an ordinary run there would release "
                "what it protects; name another directory as out"
            )
        return None
    try:
        books = Books(out, settings.privacy_ledger, settings.resume)
        if settings.plan and not books.had:
            books.room(settings.plan.budget(1))  # of how many records does not matter for that
        return books
    except ValueError as error:
        raise ConfigError(str(error)) from error


def noise_of(settings: Settings, books: Books) -> Noise:
    """The machine's own randomness, or in a simulation that asks for it what a seed gives back.

    A seed's noise goes on after the answers that a run has had.
    """
    if settings.privacy_noise == "system":
        return system_noise
    noise = seeded_noise(settings.seed)
    noise(sum(v.size for answers in books.had for a in answers.values() for v in a.sums))
    return noise


def public_patches(settings: Settings, model: PatchCore, name: str) -> np.ndarray | None:
    """Patches [N, D] of a bank's public images, of unit length; None where there are none.

    Raises:
        ConfigError: the folder is not there, or holds no images.
    """
    if not settings.has_public:
        return None
    random = np.random.default_rng(settings.seed)
    return sampled_patches(model, public_images(settings, name), MOST_PUBLIC, random)


def public_images(settings: Settings, name: str) -> InspectionDataset:
    """The public images of a bank: of the folder of its name or else the whole folder; or held out.

    Raises:
        ConfigError: there are none.
    """
    if settings.data_public_holdout:
        return by_bank(open_public_holdout(settings), settings.model_scope)[name]
    return images_below(Path(settings.privacy_public_dir), name, "privacy.public-dir")


def images_below(root: Path, name: str, said: str) -> InspectionDataset:
    """All images of a folder, or of the one in it that is named like a bank, as normal ones.

    Args:
        root: the folder.
        name: the bank's.
        said: the setting or option that named the folder.

    Raises:
        ConfigError: there are none.
    """
    place = root / name if name != SHARED and (root / name).is_dir() else root
    if not place.is_dir():
        raise ConfigError(f"{said} = {root}: there is no such folder")
    folders = [place, *sorted(p for p in place.rglob("*") if p.is_dir())]
    paths = [path for folder in folders for path in list_images(folder)]
    if not paths:
        raise ConfigError(f"{said} = {root}: it holds no images")
    samples = [Sample(p, p.relative_to(root).as_posix(), name, "train", 0, "good") for p in paths]
    return InspectionDataset("public", root, samples)


def as_merged(bank: PrivateBank) -> MergedBank:
    """A private bank in the place of a merged one. Nothing is certified of what it covers."""
    frame = Frame(bank.origin, bank.basis)
    rows = bank.rows.astype(np.float32)
    return MergedBank(rows, math.inf, math.inf, frame=frame, scores=bank.scores)


def described(settings: Settings, books: Books | None) -> dict[str, Any]:
    """What a run says of its privacy: key `privacy` of metrics.json."""
    if books is None:
        return {"mechanism": "none", "guarantee": RAW}
    ledger = books.ledger
    said: dict[str, Any] = {"mechanism": settings.privacy_mechanism, "guarantee": guarantee(ledger)}
    budget = ledger.budget
    if budget:
        said |= {
            "unit": budget.unit,
            "adjacency": budget.adjacency,
            "epsilon": ledger.epsilon,
            "delta": budget.delta,
            "budget": budget.epsilon,
            "records": budget.records,
        }
    said |= {"noise": NOISE[settings.privacy_noise], "trust": TRUST}
    if budget and budget.caution:
        said["caution"] = budget.caution
    said["releases"] = [
        {"name": r.name, "bank": r.bank, "what": r.what, "mu": r.mu} for r in ledger.releases
    ]
    return said


def check_groups(settings: Settings, train: InspectionDataset, partition: Partition) -> None:
    """See that no group of images lies with two clients: each would bound its own part only.

    Raises:
        ConfigError: one does.
    """
    column = settings.privacy_group
    if settings.privacy_unit != "group":
        return
    group_of = {sample.key: sample.metadata.get(column, "") for sample in train.samples}
    holders: dict[str, set[int]] = {}
    for client, share in enumerate(partition.clients):
        for key in share.train:
            holders.setdefault(group_of[key], set()).add(client)
    split = sorted(group for group, clients in holders.items() if len(clients) > 1)
    if split:
        raise ConfigError(
            f"privacy.group = {column}: the images of {split[0]} and {len(split) - 1} other groups "
            "lie with several clients, which together would tell more than one may; partition by "
            f"that column, with partition.kind = attribute and partition.column = {column}"
        )
