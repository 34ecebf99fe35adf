"""A complete run that is resumed takes in the images that clients have gained since."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message

from fl.client_app import app as client_app
from src.data import write_synthetic
from src.data.partition import Partition, PartitionError

LEAN = {"merge__oversample": 1.0, "merge__budget": "radius"}
EXACT = {"merge__protocol": "exact", "num_server_rounds": 30, "merge__oversample": 3.0}


@pytest.fixture
def plant(parts, tmp_path) -> Path:
    """A data root of its own, to which images can be added."""
    return shutil.copytree(parts, tmp_path / "plant")


def add_images(plant: Path, tmp_path: Path, count: int) -> None:
    size = {"good": 1, "defects": 1, "size": (64, 64), "seed": 9}
    more = write_synthetic(tmp_path / "more", ("bracket",), train=count, **size)
    for i, path in enumerate(sorted(more.rglob("train/good/*.png"))[:count]):
        shutil.copy(path, plant / "bracket" / "train" / "good" / f"9{i:03d}.png")


@pytest.fixture
def requests() -> list[Message]:
    """The requests for rows that `recording` has seen."""
    return []


@pytest.fixture
def recording(misbehave, requests):
    """A ClientApp that records requests for rows."""

    def record(message: Message, context: Context) -> Message:
        requests.append(message)
        return client_app(message, context)

    return misbehave(dict.fromkeys(range(3), record))


def rows_sent(done) -> int:
    return sum(client["sent"] for client in done.metrics["local"]["clients"])


@pytest.mark.parametrize("rounds", [1, 2])
def test_new_images_are_merged_without_starting_over(
    run, recording, requests, plant, tmp_path, rounds: int
) -> None:
    settings = {**LEAN, "data__root": str(plant), "num_server_rounds": rounds}
    before = run(**settings)
    owners = Partition.load(before.out / "partition.json").clients
    bank, size = before.model.banks["bracket"], before.metrics["bank"]["size"]
    sent = rows_sent(before)
    add_images(plant, tmp_path, 3)
    after = run(client_app=recording, out=str(before.out), resume=True, **settings)
    np.testing.assert_array_equal(after.model.banks["bracket"][:size], bank)
    assert after.metrics["bank"]["size"] == pytest.approx(size * 9 / 6, abs=3)
    assert rows_sent(after) - sent == after.metrics["bank"]["size"] - size
    assert after.metrics["bank"]["radius"] <= after.metrics["bank"]["radius_bound"] * (1 + 1e-5)
    assert after.metrics["dataset"]["train_images"] == 9
    now = Partition.load(before.out / "partition.json").clients
    assert all(set(old.train) <= set(new.train) for old, new in zip(owners, now, strict=True))
    assert len(requests) == 3  # one exchange for rows
    stages = [(s["round"], s["stage"]) for s in after.metrics["traffic"]["stages"]]
    later = rounds + 1
    assert stages[-4:-1] == [(rounds, "holdings"), (later, "curves"), (later, "train")]
    fresh = run(**settings)
    assert after.metrics["bank"]["radius"] <= fresh.metrics["bank"]["radius"] * 1.25


def test_new_images_are_merged_after_exact_rounds(run, plant, tmp_path) -> None:
    before = run(**EXACT, data__root=str(plant))
    bank = before.model.banks["bracket"]
    add_images(plant, tmp_path, 3)
    after = run(**EXACT, data__root=str(plant), out=str(before.out), resume=True)
    grown = after.model.banks["bracket"]
    np.testing.assert_array_equal(grown[: len(bank)], bank)
    assert len(grown) == pytest.approx(len(bank) * 9 / 6, abs=3)
    assert after.metrics["bank"]["radius"] <= after.metrics["bank"]["radius_bound"] * (1 + 1e-5)


def test_a_resumed_run_without_new_images_sends_no_rows(run, recording, requests, plant) -> None:
    settings = {**LEAN, "data__root": str(plant)}
    before = run(**settings)
    after = run(client_app=recording, out=str(before.out), resume=True, **settings)
    assert requests == []
    assert after.metrics["federated"] == before.metrics["federated"]
    np.testing.assert_array_equal(after.model.banks["bracket"], before.model.banks["bracket"])


def test_a_resumed_run_whose_images_have_gone_is_refused(run, plant) -> None:
    before = run(data__root=str(plant))
    sorted((plant / "bracket" / "train" / "good").iterdir())[0].unlink()
    with pytest.raises(PartitionError, match="1 images of the partition are missing"):
        run(out=str(before.out), resume=True, data__root=str(plant))
