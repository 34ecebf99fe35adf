"""A bank for each object, or one that all objects share."""

import pytest

from src.data import open_dataset, write_synthetic
from src.federated.bank_set import SHARED, BankSet, split_by_bank, split_by_object


@pytest.fixture(scope="module")
def two_objects(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts") / "set"
    write_synthetic(root, train=2, good=2, defects=2, size=(64, 64))
    return open_dataset("synthetic", root, "all", "test")


def test_each_object_has_a_bank_or_all_share_one(two_objects) -> None:
    apart, together = split_by_bank(two_objects, "object"), split_by_bank(two_objects, "shared")
    assert list(apart) == ["bracket", "connector"]
    assert {sample.object for sample in apart["bracket"].samples} == {"bracket"}
    assert list(together) == [SHARED]
    assert len(together[SHARED]) == sum(map(len, apart.values())) == 8
    assert list(split_by_object(two_objects)) == list(apart)


@pytest.mark.parametrize("scope", ["object", "shared"])
def test_no_images_make_no_bank(two_objects, scope: str) -> None:
    assert split_by_bank(two_objects.select([]), scope) == {}


def test_an_object_is_scored_by_its_own_bank_by_the_shared_one_or_by_none() -> None:
    apart, together = BankSet({"bracket": 1}), BankSet({SHARED: 2})
    assert (apart.for_object("bracket"), apart.for_object("valve")) == (1, None)
    assert (together.for_object("bracket"), together.for_object("valve")) == (2, 2)


def test_a_union_keeps_the_order_and_takes_the_later_values() -> None:
    union = BankSet({"b": 1, "a": 2}) | {"b": 3, "c": 4}
    assert list(union.items()) == [("b", 3), ("a", 2), ("c", 4)]
    assert union.map(str) == {"b": "3", "a": "2", "c": "4"}
