"""The report on a dataset: counts of its images, and its problems."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from src.data.checks.images import ImageCheck
from src.data.checks.rules import MIN_TRAIN_IMAGES, Problem
from src.data.dataset import Sample

MAX_VALUES = 64  # a column with more is an identifier rather than a site or a line


@dataclass
class Group:
    """The images of one object, split and kind of defect."""

    object: str
    split: str
    defect: str
    images: int = 0
    masks: Counter[str] = field(default_factory=Counter)  # images by mask state


@dataclass
class Formats:
    """The image formats of one object."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (H, W) in pixels
    modes: Counter[str] = field(default_factory=Counter)  # Pillow's names


@dataclass(frozen=True)
class Column:
    """A metadata column with its number of training images per value."""

    name: str
    values: Counter[str]
    complete: bool  # every image, training and test, has a value

    @property
    def can_partition(self) -> bool:
        """Whether the column can be `partition.column`."""
        return self.complete and 2 <= len(self.values) <= MAX_VALUES

    @property
    def clients(self) -> int:
        """The number of values with enough training images for a client."""
        return sum(count >= MIN_TRAIN_IMAGES for count in self.values.values())


@dataclass(frozen=True)
class DatasetReport:
    """The result of `check_dataset`."""

    kind: str
    reason: str  # for this kind
    groups: tuple[Group, ...] = ()
    formats: Mapping[str, Formats] = field(default_factory=dict)  # by object
    columns: tuple[Column, ...] = ()
    problems: tuple[Problem, ...] = ()

    def count(self, severity: str) -> int:
        """Count the problems of a severity."""
        return sum(problem.severity == severity for problem in self.problems)


def count_groups(checks: Iterable[ImageCheck]) -> tuple[Group, ...]:
    """Count images by object, training before test, normal before defective."""
    groups: dict[tuple[str, bool, bool, str], Group] = {}
    for check in checks:
        name, split, defect = check.sample.object, check.sample.split, check.sample.defect
        key = name, split == "test", defect != "good", defect
        group = groups.setdefault(key, Group(name, split, defect))
        group.images += 1
        if check.mask_state:
            group.masks[check.mask_state] += 1
    return tuple(groups[key] for key in sorted(groups))


def count_formats(checks: Iterable[ImageCheck]) -> dict[str, Formats]:
    """Count sizes and modes of readable images, by object."""
    formats: dict[str, Formats] = defaultdict(Formats)
    for check in checks:
        if check.size:
            formats[check.sample.object].sizes[check.size] += 1
            formats[check.sample.object].modes[check.mode] += 1
    return dict(sorted(formats.items()))


def count_columns(samples: Sequence[Sample]) -> tuple[Column, ...]:
    """Count the values of every metadata column."""
    names = dict.fromkeys(name for sample in samples for name in sample.metadata)
    columns = []
    for name in names:
        rows = [sample for sample in samples if name in sample.metadata]
        values = Counter(sample.metadata[name] for sample in rows if sample.split == "train")
        columns.append(Column(name, values, len(rows) == len(samples)))
    return tuple(columns)
