"""Partitions: every image has exactly one client."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import FolderDataset, Sample
from src.data.partition import (
    Partition,
    PartitionError,
    extend_partition,
    make_partition,
    partition_table,
)

MTD = Path(__file__).parents[2].parent / "shared" / "mtd"
KINDS = ["iid", "category", "attribute", "dirichlet", "quantity"]
FREE = ["iid", "dirichlet", "quantity"]  # kinds that may split a value over clients


def _sample(number, split="train", object="clip", line="a", label=0):
    key = f"{object}/{split}/{number:04d}.png"
    defect = "dent" if label else "good"
    return Sample(Path("/data") / key, key, object, split, label, defect, (), {"line": line})


def _images(split, objects, lines, labels):
    rows = zip(objects, lines, labels, strict=False)
    return [_sample(i, split, o, line, label) for i, (o, line, label) in enumerate(rows)]


@st.composite
def datasets(draw):
    """Train and test samples over at most four objects and four lines, and a client count."""
    names = st.sampled_from("pqrs")
    size = draw(st.integers(4, 60))
    lists = [draw(st.lists(names, min_size=size, max_size=size)) for _ in range(4)]
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    train = _images("train", lists[0], lists[1], [0] * size)
    test = _images("test", lists[2], lists[3], labels)
    return train, test, draw(st.integers(1, 4))


def _try(train, test, clients, kind, **more):
    """A partition, or None if category or attribute has fewer values than clients."""
    try:
        return make_partition(train, test, clients, kind, **more)
    except PartitionError:
        values = {s.object if kind == "category" else s.metadata["line"] for s in train}
        assert kind in ("category", "attribute")
        assert len(values) < clients
        return None


@given(datasets(), st.sampled_from(KINDS), st.integers(0, 9))
def test_every_image_has_exactly_one_client(data, kind, seed):
    train, test, clients = data
    partition = _try(train, test, clients, kind, column="line", seed=seed)
    if partition is None:
        return
    partition.check(train, test)
    assert len(partition.clients) == clients
    assert sorted(k for c in partition.clients for k in c.train) == sorted(s.key for s in train)
    assert sorted(k for c in partition.clients for k in c.test) == sorted(s.key for s in test)
    assert all(share.train for share in partition.clients)


@given(datasets(), st.sampled_from(KINDS), st.randoms())
def test_the_order_of_the_samples_does_not_matter(data, kind, random):
    train, test, clients = data
    before = _try(train, test, clients, kind, column="line")
    train, test = random.sample(train, len(train)), random.sample(test, len(test))
    assert _try(train, test, clients, kind, column="line") == before


@given(datasets(), st.sampled_from(FREE), st.integers(0, 15), st.sampled_from([0.01, 1.0]))
def test_every_client_gets_the_minimum(data, kind, minimum, alpha):
    train, test, clients = data
    minimum = min(minimum, len(train) // clients)
    partition = make_partition(train, test, clients, kind, minimum=minimum, alpha=alpha)
    assert min(len(share.train) for share in partition.clients) >= minimum


@pytest.mark.parametrize("kind", FREE)
def test_another_seed_gives_another_partition(kind):
    train, test = [_sample(i) for i in range(60)], [_sample(i, "test") for i in range(20)]
    one, same, two = (make_partition(train, test, 3, kind, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.clients != two.clients


@given(datasets())
def test_even_shares_differ_by_at_most_one_image_per_stratum(data):
    train, test, clients = data
    partition = make_partition(train, test, clients, "iid")
    by_key = {s.key: s for s in [*train, *test]}
    for keys in ([c.train for c in partition.clients], [c.test for c in partition.clients]):
        counts = [Counter((by_key[k].label, by_key[k].object) for k in share) for share in keys]
        for stratum in {name for count in counts for name in count}:
            sizes = [count[stratum] for count in counts]
            assert max(sizes) - min(sizes) <= 1
        assert max(map(len, keys)) - min(map(len, keys)) <= 1


@given(datasets(), st.sampled_from(["category", "attribute"]))
def test_a_value_has_one_client_in_train_and_test(data, kind):
    train, test, clients = data
    partition = _try(train, test, clients, kind, column="line")
    if partition is None:
        return
    values = {s.key: s.object if kind == "category" else s.metadata["line"] for s in train + test}
    owners = {}
    for number, share in enumerate(partition.clients):
        for key in share.train + share.test:
            assert owners.setdefault(values[key], number) == number


def _spread(kind, alpha):
    """Standard deviation over seeds of a client's share of one value, relative to an even share."""
    train = [_sample(i, object="clip" if i % 2 else "pipe") for i in range(400)]
    rows = []
    for seed in range(20):
        partition = make_partition(train, [], 4, kind, alpha=alpha, seed=seed)
        table = np.array(partition_table(partition, train)[1])  # [clients, objects]
        rows.append(table.sum(axis=1, keepdims=True) / 2 if kind == "quantity" else table)
    return np.std(np.array(rows) / 50)


@pytest.mark.parametrize("kind", ["dirichlet", "quantity"])
def test_a_large_alpha_is_nearly_even_and_a_small_one_skewed(kind):
    # The share of a symmetric Dirichlet over 4 has standard deviation sqrt(3 / (16 (4 alpha + 1))):
    # relative to an even share 4 times that, so 1.46 at alpha 0.1 and 0.027 at 1000.
    assert _spread(kind, 1000.0) < 0.08
    assert _spread(kind, 0.1) == pytest.approx(1.46, abs=0.25)


def test_dirichlet_skews_its_column():
    train = [_sample(i, line="ab"[i % 2]) for i in range(200)]
    plain = make_partition(train, [], 2, "dirichlet", alpha=0.1, seed=3)
    lined = make_partition(train, [], 2, "dirichlet", column="line", alpha=0.1, seed=3)
    even = [row[0] / max(1, sum(row)) for row in partition_table(plain, train, "line")[1]]
    skewed = [row[0] / max(1, sum(row)) for row in partition_table(lined, train, "line")[1]]
    assert max(abs(share - 0.5) for share in even) < 0.2
    assert max(abs(share - 0.5) for share in skewed) > 0.3


def test_spare_values_go_to_the_client_with_the_fewest_images():
    lines = "a" * 5 + "b" * 4 + "c" * 6 + "z"  # 'z' is extra and goes to b, the smallest client
    train = [_sample(i, line=line) for i, line in enumerate(lines)]
    test = [_sample(i, "test", line=line) for i, line in enumerate("aaabccyyyy")]  # 'y' is new
    partition = make_partition(train, test, 3, "attribute", column="line")
    assert partition_table(partition, train, "line") == (
        ["a", "b", "c", "z"],
        [[5, 0, 0, 0], [0, 4, 0, 1], [0, 0, 6, 0]],
    )
    assert [len(share.test) for share in partition.clients] == [3, 5, 2]  # and so does 'y'


def test_too_few_values_or_images_say_what_to_change():
    train = [_sample(i, line="aab"[i % 3]) for i in range(6)]
    with pytest.raises(PartitionError, match=r"2 values \('a': 4, 'b': 2\) for 3 clients.*at most"):
        make_partition(train, [], 3, "attribute", column="line")
    with pytest.raises(PartitionError, match=r"would get 2 .* minimum 3.*'a': 4, 'b': 2"):
        make_partition(train, [], 2, "attribute", column="line", minimum=3)
    with pytest.raises(PartitionError, match="6 training images, but clients × minimum is 8"):
        make_partition(train, [], 4, "iid", minimum=2)


def test_a_missing_column_is_named_with_the_available_ones():
    with pytest.raises(PartitionError, match=r"'lamp'.*train/0000.*available columns: line"):
        make_partition([_sample(0)], [], 1, "attribute", column="lamp")
    bare = Sample(Path("/a"), "a", "clip", "train", 0, "good")
    with pytest.raises(PartitionError, match=r"no metadata\.csv"):
        make_partition([bare], [], 1, "dirichlet", column="lamp")


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "random"}, {"clients": 0}, {"seed": -1}, {"alpha": 0.0}, {"alpha": float("nan")},
     {"minimum": -1}, {"train": [_sample(0, label=1)]}, {"train": [_sample(0), _sample(0)]},
     {"train": []}],
)  # fmt: skip
def test_invalid_arguments_are_refused(wrong):
    request = {"train": [_sample(0)], "test": [], "clients": 1, "kind": "iid"}
    with pytest.raises(PartitionError):
        make_partition(**(request | wrong))


@settings(max_examples=20)
@given(data=datasets(), kind=st.sampled_from(FREE))
def test_a_saved_partition_loads_as_it_was(data, kind, tmp_path_factory):
    partition = make_partition(*data, kind, column="line", alpha=0.3)
    path = tmp_path_factory.mktemp("run") / "partition.json"
    partition.save(path)
    assert Partition.load(path) == partition
    assert [file.name for file in path.parent.iterdir()] == ["partition.json"]


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"clients": [{"train": "abc", "test": []}]}, None]
)
def test_an_invalid_partition_file_is_named(change, tmp_path):
    path = tmp_path / "partition.json"
    with pytest.raises(PartitionError, match=r"partition\.json"):
        Partition.load(path)
    make_partition([_sample(0)], [], 1, "iid").save(path)
    content = json.loads(path.read_text()) | change if change else []
    path.write_text(json.dumps(content))
    with pytest.raises(PartitionError, match=r"partition\.json"):
        Partition.load(path)


def test_check_finds_images_that_are_missing_unknown_or_with_two_clients():
    train = [_sample(i) for i in range(4)]
    partition = make_partition(train, [], 2, "iid")
    partition.check(train, [])
    with pytest.raises(PartitionError, match=r"1 train images without a client.*0009"):
        partition.check([*train, _sample(9)], [])
    with pytest.raises(PartitionError, match=r"1 train images missing from the dataset.*0003"):
        partition.check(train[:3], [])
    twice = Partition("iid", 0, "", 1.0, (*partition.clients, partition.clients[0]))
    with pytest.raises(PartitionError, match="2 train images with two clients"):
        twice.check(train, [])


@given(datasets(), st.sampled_from(KINDS), st.integers(1, 30))
def test_an_extended_partition_keeps_assigned_images_and_assigns_the_rest(data, kind, old):
    train, test, clients = data
    first = _try(train[:old], test[:old], clients, kind, column="line", minimum=0) if old else None
    if first is None:
        return
    grown = extend_partition(first, train, test)
    grown.check(train, test)
    for before, after in zip(first.clients, grown.clients, strict=True):
        assert set(before.train) <= set(after.train)
        assert set(before.test) <= set(after.test)
    assert extend_partition(first, train[:old], test[:old]) == first


def test_a_new_image_follows_its_value_and_a_new_value_goes_to_the_smallest_client():
    train = [_sample(i, line="a") for i in range(5)] + [_sample(i, line="b") for i in (5, 6)]
    first = make_partition(train, [], 2, "attribute", column="line")
    more = [*train, _sample(7, line="a"), _sample(8, line="c")]
    counts = partition_table(extend_partition(first, more, []), more, "line")[1]
    assert sorted(counts) == [[0, 2, 1], [6, 0, 0]]


def test_missing_images_are_named():
    train = [_sample(i) for i in range(4)]
    first = make_partition(train, [], 2, "iid")
    with pytest.raises(PartitionError, match=r"1 images .* are missing, first clip/train/0003.png"):
        extend_partition(first, train[:3], [])


@pytest.mark.skipif(not MTD.is_dir(), reason="shared/mtd is not beside the checkout")
def test_magnetic_tiles_split_into_one_client_an_exposure():
    train, test = (FolderDataset(MTD, split=split).samples for split in ("train", "test"))
    partition = make_partition(train, test, 6, "attribute", column="exposure")
    partition.check(train, test)
    names, table = partition_table(partition, train, "exposure")
    assert names == list("0123456")
    assert [row[1:].index(max(row)) for row in table] == [0, 1, 2, 3, 4, 5]
    assert [row[0] for row in table] == [0, 0, 0, 1, 0, 0]  # goes to exposure 4: 120 images
