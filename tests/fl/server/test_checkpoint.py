"""An interrupted run goes on from its checkpoint and ends as it would have."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message

from fl.config import ConfigError
from fl.server.checkpoint import Checkpoint
from fl.server.federation import RoundFailed
from fl.server.state import ClientRecord, ServerState
from fl.server.traffic import ClientTraffic, Traffic
from fl.setup.model import build_model
from src.federated.bank_set import BankSet
from src.federated.types import Certificate, ClientBank, ClientStats, MergedBank
from src.models import PatchCore
from src.models.feature_transform import FeatureTransform
from src.storage.run_metrics import Refusal, Stage

SAME = ("model.safetensors", "partition.json", "scores.csv")


def die(message: Message, context: Context) -> Message:
    raise OSError("the machine is gone")


@pytest.fixture(scope="module")
def interrupted(run, misbehave, tmp_path_factory) -> Path:
    """The run directory of a run that lost all its clients after the merge."""
    out = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(RoundFailed, match="only 0 of 3 clients scored"):
        run(client_app=misbehave({}, dict.fromkeys(range(3), die)), out=str(out))
    return out


def never(message: Message, context: Context) -> Message:
    raise AssertionError("a resumed run asks for no rows")


def test_an_interrupted_run_leaves_a_usable_model_and_no_metrics(interrupted, clean) -> None:
    assert {p.name for p in interrupted.iterdir()} >= {"config.toml", "round.json", SAME[0]}
    assert not (interrupted / "metrics.json").exists()
    model = PatchCore.load(interrupted / "model.safetensors")
    np.testing.assert_array_equal(model.get_memory_bank(), clean.model.banks["bracket"])


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    run, misbehave, interrupted, clean
) -> None:
    app = misbehave(dict.fromkeys(range(3), never))
    done = run(client_app=app, out=str(interrupted), resume=True)
    for name in SAME:
        assert (done.out / name).read_bytes() == (clean.out / name).read_bytes(), name
    for key in ("local", "federated", "centralized", "bank"):
        assert done.metrics[key] == clean.metrics[key], key
    holdings, *_ = [s for s in done.metrics["traffic"]["stages"] if s["stage"] == "holdings"]
    assert 0 < holdings["up"] < 2000  # it asked whether there are new images
    assert set(json.loads((done.out / "metrics.json").read_text())) == set(clean.metrics)


def test_a_client_left_out_of_the_merge_stays_named_until_it_is_back(
    run, misbehave, clean, tmp_path
) -> None:
    app = misbehave({1: die}, dict.fromkeys(range(3), die))
    with pytest.raises(RoundFailed):
        run(client_app=app, out=str(tmp_path), min_clients=2)
    gone = misbehave({1: die}, {1: die}, {1: die})
    done = run(client_app=gone, out=str(tmp_path), resume=True, min_clients=2)
    assert [entry["client"] for entry in done.metrics["refused"]] == ["node 1002"]
    assert [c["client"] for c in done.metrics["local"]["clients"]] == [0, 2]
    back = run(out=str(tmp_path), resume=True, min_clients=2)
    assert back.metrics["refused"] == []
    assert [c["client"] for c in back.metrics["local"]["clients"]] == [0, 1, 2]
    assert back.metrics["bank"]["size"] == clean.metrics["bank"]["size"]


def test_a_run_without_a_checkpoint_cannot_be_resumed(run, tmp_path) -> None:
    with pytest.raises(ConfigError, match="holds no merged bank to go on from"):
        run(out=str(tmp_path), resume=True)


def test_a_checkpoint_of_another_backbone_is_refused(run, interrupted) -> None:
    with pytest.raises(ConfigError, match="is of another backbone"):
        run(out=str(interrupted), resume=True, model__weights="random")


def test_a_checkpoint_of_another_version_is_refused(run, misbehave, tmp_path) -> None:
    with pytest.raises(RoundFailed):
        run(client_app=misbehave({}, dict.fromkeys(range(3), die)), out=str(tmp_path))
    path = tmp_path / "round.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9}))
    with pytest.raises(ConfigError, match="is of version 9"):
        run(out=str(tmp_path), resume=True)


def test_resuming_needs_a_run_directory(settings) -> None:
    with pytest.raises(ConfigError, match="resume: set out to the run directory"):
        settings(resume=True, out="")


BANKS = BankSet(
    {
        "bracket": MergedBank(
            np.eye(3, 152, dtype=np.float16), certificate=Certificate(0.5, 1.25, exact_rows=2)
        ),
        "private": MergedBank(
            np.eye(2, dtype=np.float32),
            FeatureTransform(np.zeros(152), np.ones((152, 2))),
            log_scores=(0.25, 0.125),
        ),
    }
)
STATS = {"bracket": ClientStats(2, 128, 13)}


def sent(rows: np.ndarray, radius: float) -> dict[str, ClientBank]:
    return {"bracket": ClientBank(rows, radius, 1.5, STATS["bracket"])}


def test_a_checkpoint_gives_the_state_back_but_for_the_rows_that_clients_sent(
    settings, tmp_path
) -> None:
    """The merged bank covers what the rows cover, within its bound."""
    rows = np.ones((26, 152), np.float16)
    state = ServerState(
        round=3,
        banks=BANKS,
        clients={
            0: ClientRecord(STATS, sent(rows, 0.75), 26, acked_round=3, synced_rows={"bracket": 2}),
            4: ClientRecord(STATS, sent(rows[:9], 0.5), 9),
        },
        traffic=Traffic(
            (Stage(round=1, stage="train", up=100, down=20),),
            {0: ClientTraffic(60, {"features": 0.5}), 4: ClientTraffic(40)},
            (Refusal(client=1, reason="it went away"), Refusal(client="node 7", reason="?")),
        ),
        merge_seconds=0.25,
    )
    checkpoint = Checkpoint(tmp_path, build_model(settings()))
    checkpoint.save(state)
    loaded = checkpoint.load()
    for part in ("round", "traffic", "merge_seconds", "results"):
        assert getattr(loaded, part) == getattr(state, part), part
    assert loaded.bank_sizes == state.bank_sizes
    for name, bank in state.banks.items():
        np.testing.assert_array_equal(loaded.banks[name].features, bank.features)
        assert loaded.banks[name].certificate == bank.certificate
        assert loaded.banks[name].log_scores == bank.log_scores
    transform = loaded.banks["private"].transform
    np.testing.assert_array_equal(transform.origin, np.zeros(152))
    np.testing.assert_array_equal(transform.basis, np.ones((152, 2)))
    assert list(loaded.clients) == list(state.clients)
    for client, record in state.clients.items():
        again = loaded.clients[client]
        assert (again.stats, again.sent_rows) == (record.stats, record.sent_rows)
        assert (again.acked_round, again.synced_rows) == (0, {})  # clients are told all again
        bank = again.banks["bracket"]
        assert (bank.features.shape, bank.radius) == ((0, 152), 1.25)
        assert (bank.share_radius, bank.stats) == (1.5, STATS["bracket"])


@pytest.mark.parametrize(
    ("full_at", "kept"),
    [("config.toml", "nothing was merged yet"), ("report.html", "its merged bank is kept")],
)
def test_a_full_disk_is_reported_in_a_sentence_and_leaves_no_half_file(
    run, clean, tmp_path, monkeypatch, full_at: str, kept: str
) -> None:
    replace = Path.replace

    def full(draft: Path, target: Path) -> Path:
        if target.name == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(draft, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(RoundFailed, match=f"No space left on device; {kept}"):
            run(out=str(tmp_path))
    assert not (tmp_path / "metrics.json").exists()
    assert not [p for p in tmp_path.iterdir() if full_at in p.name]
    again = run(out=str(tmp_path), resume=full_at == "report.html")
    assert (again.out / SAME[0]).read_bytes() == (clean.out / SAME[0]).read_bytes()
