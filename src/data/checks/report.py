"""What there is in a data set: its images counted in tables, beside its problems."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.data.checks.images import Look
from src.data.checks.rules import Problem
from src.data.dataset import Sample

VALUES = range(2, 65)  # how many values a column may have to divide a data set among clients


@dataclass
class Group:
    """The images of one object, split and kind of defect."""

    object: str
    split: str
    defect: str
    images: int = 0
    masks: Counter[str] = field(default_factory=Counter)  # marked, empty, missing, unusable


@dataclass
class Pictures:
    """What the images of an object are like."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (H, W) in pixels
    modes: Counter[str] = field(default_factory=Counter)  # as Pillow names them


@dataclass(frozen=True)
class Column:
    """A column of metadata: how many training images have each value."""

    name: str
    values: Counter[str]
    complete: bool  # every image, training and test, has it

    @property
    def divides(self) -> bool:
        """Whether it can be `partition.column`."""
        return self.complete and len(self.values) in VALUES


@dataclass(frozen=True)
class Findings:
    """What `check_dataset` found; errors before warnings."""

    root: Path
    kind: str
    reason: str  # why this kind
    groups: tuple[Group, ...]
    pictures: Mapping[str, Pictures]  # by object
    columns: tuple[Column, ...]
    problems: tuple[Problem, ...]

    def count(self, grade: str) -> int:
        """How many kinds of problem there are of a grade."""
        return sum(problem.grade == grade for problem in self.problems)


def count_groups(looks: Iterable[Look]) -> tuple[Group, ...]:
    """By object, training before test, normal before defective."""
    groups: dict[tuple[str, str, str], Group] = {}
    for look in looks:
        key = look.sample.object, look.sample.split, look.sample.defect
        group = groups.setdefault(key, Group(*key))
        group.images += 1
        if look.truth:
            group.masks[look.truth] += 1
    order = sorted(groups, key=lambda key: (key[0], key[1] == "test", key[2] != "good", key[2]))
    return tuple(groups[key] for key in order)


def count_pictures(looks: Iterable[Look]) -> dict[str, Pictures]:
    """By object, of the images that can be read."""
    pictures: dict[str, Pictures] = defaultdict(Pictures)
    for look in looks:
        if look.size:
            pictures[look.sample.object].sizes[look.size] += 1
            pictures[look.sample.object].modes[look.mode] += 1
    return dict(sorted(pictures.items()))


def count_columns(samples: Sequence[Sample]) -> tuple[Column, ...]:
    """Every column of metadata that some image has."""
    names = dict.fromkeys(name for sample in samples for name in sample.metadata)
    return tuple(_count_values(name, samples) for name in names)


def _count_values(name: str, samples: Sequence[Sample]) -> Column:
    having = [sample for sample in samples if name in sample.metadata]
    values = Counter(sample.metadata[name] for sample in having if sample.split == "train")
    return Column(name, values, len(having) == len(samples))
