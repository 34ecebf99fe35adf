"""The same settings give the same banks, byte for byte, whatever the code is made of.

behaviour.json holds what each run gave at commit 1a84e8a, before the code was rebuilt. After a
change that is meant to alter it: `UPDATE_BEHAVIOUR=1 python -m pytest tests/fl/test_behaviour.py`,
and a message that says why.

Features of a CPU differ from those of another in their last bits. Where the features of this
machine are not those that behaviour.json was made from, digests are left out, and the metrics,
counts and partitions are compared alone.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from fl.client_app import app as honest_app
from fl.server.federation import RoundFailed
from src.data import write_synthetic
from src.data.partition import Partition

EXPECTED = Path(__file__).with_name("behaviour.json")
UPDATE = bool(os.environ.get("UPDATE_BEHAVIOUR"))

LEAN = {"merge__oversample": 1.0, "merge__budget": "radius"}
EXACT = {"merge__protocol": "exact", "num_server_rounds": 30, "merge__oversample": 3.0}
PRIVATE = {
    "privacy__mechanism": "dp_gaussian",
    "privacy__epsilon": 50.0,
    "privacy__delta": 0.01,
    "privacy__noise": "seed",
}


def losing(kind: str, clients: set[int], calls: set[int]) -> Callable[[Message, Context], Message]:
    """An app whose `clients` fail in their `calls` (0 is the first) to messages of a kind."""
    seen: dict[int, int] = {}

    def app(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if message.metadata.message_type.partition(".")[0] == kind:
            seen[client] = seen.get(client, -1) + 1
            if client in clients and seen[client] in calls:
                raise OSError("the cable is out")
        return honest_app(message, context)

    return app


def resumed(run, tmp_path, **changes: Any):
    """A run whose clients are all lost in the evaluation, then taken up again."""
    with pytest.raises(RoundFailed):
        run(losing("evaluate", {0, 1, 2}, {0}), out=str(tmp_path / "run"), **changes)
    return run(out=str(tmp_path / "run"), resume=True, **changes)


def grown(run, tmp_path, parts, **changes: Any):
    """A run that ended, then took in three more images."""
    root = shutil.copytree(parts, tmp_path / "plant")
    done = run(data__root=str(root), **changes)
    more = write_synthetic(tmp_path / "more", ("bracket",), train=3, size=(64, 64), seed=9)
    for path in sorted(more.rglob("train/good/*.png")):
        shutil.copy(path, root / "bracket" / "train" / "good" / f"9{path.name}")
    return run(data__root=str(root), out=str(done.out), resume=True, **changes)


def deployed(run, plants, **changes: Any):
    """A run whose two nodes each have their own data."""
    nodes = [
        {"partition-id": i, "num-partitions": 2, "data-root": str(root)}
        for i, root in enumerate(plants)
    ]
    return run(nodes=nodes, clients=2, data__root="", data__shared=False, **changes)


VARIANTS: dict[str, Callable[..., Any]] = {
    "one round": lambda run, **_: run(),
    "two objects": lambda run, two_objects, **_: run(data__root=str(two_objects)),
    "one bank for all": lambda run, two_objects, **_: run(
        data__root=str(two_objects), clients=2, model__scope="shared", partition__kind="category"
    ),
    "quantity": lambda run, **_: run(partition__kind="quantity", partition__alpha=0.3, clients=2),
    "residual rounds": lambda run, **_: run(**LEAN, num_server_rounds=2),
    "exact rounds": lambda run, **_: run(**EXACT),
    "few exact rounds": lambda run, **_: run(**{**EXACT, "num_server_rounds": 4}),
    "exact rounds, two objects": lambda run, two_objects, **_: run(
        **EXACT, data__root=str(two_objects)
    ),
    "int8": lambda run, **_: run(merge__encoding="int8"),
    "int8, residual rounds": lambda run, **_: run(
        **LEAN, num_server_rounds=2, merge__encoding="int8"
    ),
    "float32": lambda run, **_: run(merge__encoding="float32"),
    "private": lambda run, **_: run(**PRIVATE),
    "private, public images": lambda run, parts, **_: run(
        **PRIVATE, privacy__public_dir=str(parts / "bracket" / "test"), evaluate__baselines=False
    ),
    "resumed": lambda run, tmp_path, **_: resumed(run, tmp_path),
    "private, resumed": lambda run, tmp_path, **_: resumed(run, tmp_path, **PRIVATE),
    "new images": lambda run, tmp_path, parts, **_: grown(run, tmp_path, parts, **LEAN),
    "new images, exact rounds": lambda run, tmp_path, parts, **_: grown(
        run, tmp_path, parts, **EXACT
    ),
    "one client lost": lambda run, **_: run(losing("train", {1}, {0}), min_clients=2),
    "one client lost for a round": lambda run, **_: run(
        losing("train", {1}, {0}), min_clients=2, **LEAN, num_server_rounds=2
    ),
    "one client lost in exact rounds": lambda run, **_: run(
        losing("train", {1}, {3}), min_clients=2, **EXACT
    ),
    "one client lost in the evaluation": lambda run, **_: run(
        losing("evaluate", {1}, {0}), min_clients=2
    ),
    "own data": lambda run, plants, **_: deployed(run, plants),
    "own data, residual rounds": lambda run, plants, **_: deployed(
        run, plants, **LEAN, num_server_rounds=2
    ),
    "shuffled": lambda run, **_: run(shuffle=3),
}


@pytest.fixture(scope="module")
def expected() -> Iterator[dict[str, Any]]:
    """What each run gave; written anew at the end where that is asked for."""
    runs = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    yield runs
    if UPDATE:
        EXPECTED.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n")


@pytest.fixture(scope="module")
def same_features(expected, clean) -> bool:
    """Whether this machine's features are those that behaviour.json was made from, to the bit."""
    return UPDATE or behaviour(clean)["digests"] == expected["one round"]["digests"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_run_gives_what_it_gave(
    variant, expected, same_features, run, parts, two_objects, plants, tmp_path
):
    done = VARIANTS[variant](
        run, parts=parts, two_objects=two_objects, plants=plants, tmp_path=tmp_path
    )
    observed = json.loads(json.dumps(behaviour(done)))
    if UPDATE:
        expected[variant] = observed
    if same_features:
        assert observed["digests"] == expected[variant]["digests"]
    agree(observed["metrics"], expected[variant]["metrics"], variant)


def agree(observed: Any, wanted: Any, place: str) -> None:
    """Numbers to five digits, all else as it is."""
    if isinstance(wanted, dict):
        assert observed.keys() == wanted.keys(), place
        for key, value in wanted.items():
            agree(observed[key], value, f"{place}: {key}")
    elif isinstance(wanted, list):
        assert len(observed) == len(wanted), place
        for i, value in enumerate(wanted):
            agree(observed[i], value, f"{place}: {i}")
    elif isinstance(wanted, float):
        assert observed == pytest.approx(wanted, rel=1e-5), place
    else:
        assert observed == wanted, place


def behaviour(done) -> dict[str, Any]:
    """Digests of a run's arrays and scores; and its metrics, counts and partition."""
    model, metrics = done.model, done.metrics
    digests = {
        "banks": {name: digest(rows) for name, rows in model.banks.items()},
        "coordinates": {
            name: [digest(getattr(transform, part)) for part in ("origin", "basis")]
            for name, transform in model.transforms.items()
        },
        "scores": None,
    }
    if (done.out / "scores.csv").exists():
        digests["scores"] = hashlib.sha256((done.out / "scores.csv").read_bytes()).hexdigest()[:16]
    kept = {key: metrics.get(key) for key in ("federated", "centralized", "bank", "threshold")}
    kept["refused"] = [entry["client"] for entry in metrics["refused"]]
    kept["rounds"] = [stage["round"] for stage in metrics["traffic"]["stages"]]
    kept["spent"] = [release["mu"] for release in metrics["privacy"].get("releases", [])]
    if (done.out / "partition.json").exists():
        clients = Partition.load(done.out / "partition.json").clients
        shares = [[list(share.train), list(share.test)] for share in clients]
        kept["partition"] = hashlib.sha256(json.dumps(shares).encode()).hexdigest()[:16]
    return {"digests": digests, "metrics": kept}


def digest(array: np.ndarray | None) -> str:
    """Of an array's values, shape and type."""
    if array is None:
        return "none"
    about = f"{array.dtype} {array.shape}".encode()
    return hashlib.sha256(about + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
