"""One value for each bank: a bank an object, or one bank that all objects share."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Literal, TypeVar

from src.data import InspectionDataset

SHARED = "shared"  # the bank's name where all objects share one

Scope = Literal["object", "shared"]
T = TypeVar("T")
U = TypeVar("U")


class BankSet(Mapping[str, T], Generic[T]):
    """Values by bank name, in a fixed order.

    A bank is named after its object, or "shared" where one bank serves all objects
    (`model.scope`). Everything that exists once a bank is held in a BankSet: rows, thresholds,
    training images.
    """

    def __init__(self, values: Mapping[str, T] = {}) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> T:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __or__(self, other: Mapping[str, T]) -> "BankSet[T]":
        return BankSet({**self._values, **other})

    def __repr__(self) -> str:
        return f"BankSet({self._values!r})"

    def for_object(self, name: str) -> T | None:
        """The value of the bank that scores an object, or None."""
        return self._values.get(SHARED, self._values.get(name))

    def map(self, function: Callable[[T], U]) -> "BankSet[U]":
        """A set of the same banks with `function` of each value."""
        return BankSet({name: function(value) for name, value in self.items()})


def split_by_bank(dataset: InspectionDataset, scope: Scope) -> BankSet[InspectionDataset]:
    """Divide a dataset by the bank its images belong to; empty if the dataset is."""
    if scope == "shared":
        return BankSet({SHARED: dataset} if len(dataset) else {})
    return BankSet(split_by_object(dataset))


def split_by_object(dataset: InspectionDataset) -> dict[str, InspectionDataset]:
    """Divide a dataset by object."""
    names = [sample.object for sample in dataset.samples]
    return {
        name: dataset.select([i for i, other in enumerate(names) if other == name])
        for name in dataset.objects
    }
