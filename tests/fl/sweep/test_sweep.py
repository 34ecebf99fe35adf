"""A sweep: its runs, the mistakes it refuses, its results.csv, and what resuming leaves to do."""

import csv
import json
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fl.config import ConfigError
from fl.sweep.runs import Run, read_sweep
from fl.sweep.workers import execute_runs, max_jobs

FILE = """
base = "base.toml"

[settings]
merge.oversample = 2

[grid]
seed = [0, 1]

[[runs]]
partition.kind = "iid"

[[runs]]
partition.kind = "dirichlet"
partition.column = "line"
partition.alpha = 0.3
"""


@pytest.fixture
def written(tmp_path, parts, cache):
    """written(text): write a sweep over the small parts to a file."""
    base = f"""
        clients = 2
        [data]
        kind = "autovi"
        root = "{parts}"
        image-size = "64"
        [cache]
        dir = "{cache}"
    """
    (tmp_path / "base.toml").write_text(base)

    def write(text: str = FILE) -> Path:
        path = tmp_path / "kinds.toml"
        path.write_text(text)
        return path

    return write


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def plan(path: Path, *sets: str) -> list[Run]:
    return read_sweep(path, sets, path.parent / "out")


def test_each_run_is_combined_with_each_point_of_the_grid(written) -> None:
    runs = plan(written())
    assert [run.name for run in runs] == [
        "kind-iid_seed-0",
        "kind-iid_seed-1",
        "kind-dirichlet_column-line_alpha-0.3_seed-0",
        "kind-dirichlet_column-line_alpha-0.3_seed-1",
    ]
    assert [run.settings.seed for run in runs] == [0, 1, 0, 1]
    assert {run.settings.merge_oversample for run in runs} == {2}
    assert {run.settings.clients for run in runs} == {2}
    assert {run.folder.parent.name for run in runs} == {"runs"}
    assert runs[0].varied == {
        "partition.kind": "iid",
        "partition.column": "",
        "partition.alpha": 0.5,
        "seed": 0,
    }


def test_the_command_overrides_the_sweep_which_overrides_the_base(written) -> None:
    runs = plan(written(), "clients=3", "evaluate.maps=true")
    assert {run.settings.clients for run in runs} == {3}
    assert all(run.settings.evaluate_maps for run in runs)
    assert not any(run.settings.evaluate_maps for run in plan(written()))


def test_keys_with_the_same_last_part_keep_their_full_names(written) -> None:
    runs = plan(written("[grid]\ndata.kind = ['synthetic']\npartition.kind = ['iid', 'quantity']"))
    assert [run.name for run in runs] == ["kind-iid", "kind-quantity"]  # only one key varies
    text = "[grid]\npartition.file = ['', '/a/b']\npartition.kind = ['iid', 'quantity']"
    assert len({run.name for run in plan(written(text))}) == 4


def test_long_and_odd_values_give_distinct_folders(written) -> None:
    long = "/" + "x" * 150
    runs = plan(written(f"[grid]\npartition.file = ['{long}/1', '{long}/2', '/a b/c']"))
    assert len({run.folder for run in runs}) == 3
    assert all(len(run.name) < 120 and "/" not in run.name for run in runs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\nseed = 3", "seed in [grid] must be a list of values, not 3"),
        ("[grid]\nseed = []", "seed in [grid] must be a list"),
        ("[grid]\nseed = [[1]]", "has a value that no setting can have"),
        ("[grid]\nsead = [1]", "run kinds: sead: unknown setting; did you mean seed?"),
        ("[grid]\npartition.alpha = [1, -1]", "run alpha--1: partition.alpha = -1"),
        ("[grid]\nseed = [1, 1]", "have the same settings"),
        ("[grid]\nseed = [1]\n[[runs]]\nseed = 2", "seed is in [grid] and in [[runs]]"),
        ("[grid]\nout = ['/a', '/b']", "the sweep sets out itself"),
        ("[settings]\nresume = true", "the sweep sets resume itself"),
        ("[settings]\nseed = [1, 2]", "seed: a setting is a text, a number or true/false"),
        ("[settings]\ndata.shared = false", "clients share a data root"),
        ("[grids]\nseed = [1]", "unknown table grids"),
        ("runs = 3", "runs must be tables, each under [[runs]]"),
        ("base = 3", "base must be the name of a file"),
        ("base = 'nowhere.toml'", "nowhere.toml does not exist"),
    ],
)
def test_a_mistake_is_reported_before_anything_runs(written, text, message) -> None:
    base = "" if "base" in text else "base = 'base.toml'\n"
    with pytest.raises(ConfigError, match=".") as refused:
        plan(written(base + text))
    assert message in str(refused.value)


def test_a_setting_that_varies_cannot_be_set_for_all_runs(written) -> None:
    with pytest.raises(ConfigError, match="--set seed: .* varies this setting"):
        plan(written(), "seed=5")


def test_results_have_a_row_for_each_run_with_its_metrics(cli, written, tmp_path) -> None:
    ended = cli("sweep", written(), "--out", tmp_path / "out", "--jobs", 1)
    assert ended.code == 0, ended.err
    found = rows(tmp_path / "out")
    assert [row["run"] for row in found] == [run.name for run in plan(written())]
    assert {row["status"] for row in found} == {"done"}
    for row in found:
        metrics = json.loads((tmp_path / "out/runs" / row["run"] / "metrics.json").read_text())
        assert float(row["federated.image_auroc"]) == metrics["federated"]["image_auroc"]
        assert float(row["centralized.image_auroc"]) == metrics["centralized"]["image_auroc"]
        assert float(row["local.mean"]) == metrics["local"]["mean"]["image_auroc"]
        assert int(row["traffic.upload_bytes"]) == sum(metrics["traffic"]["upload_bytes"])
        assert float(row["bank.radius"]) == metrics["bank"]["radius"]
        assert int(row["seed"]) == metrics["seed"]
    assert [row["partition.alpha"] for row in found] == ["0.5", "0.5", "0.3", "0.3"]
    assert str(tmp_path / "out/results.csv") in ended.out.replace("\n", "")


def test_resume_skips_finished_runs(cli, written, tmp_path) -> None:
    out = tmp_path / "out"
    one = "base = 'base.toml'\n[grid]\nseed = [0]"
    three = one.replace("[0]", "[0, 1, 2]")
    assert cli("sweep", written(one), "--out", out, "--jobs", 1).code == 0
    (out / "runs/kinds").rename(out / "runs/seed-0")
    kept = (out / "runs/seed-0/metrics.json").stat().st_mtime_ns
    ended = cli("sweep", written(three), "--out", out, "--resume", "--jobs", 1)
    assert ended.code == 0, ended.err
    assert "1 of 3 runs are done already" in ended.out
    assert (out / "runs/seed-0/metrics.json").stat().st_mtime_ns == kept
    assert [row["seed"] for row in rows(out)] == ["0", "1", "2"]
    other = ("--set", "partition.minimum=2")
    again = cli("sweep", written(three), "--out", out, "--resume", "--jobs", 1, *other)
    assert "done already" not in again.out  # other settings: other runs


def test_resume_repeats_a_run_without_metrics(cli, written, tmp_path) -> None:
    out = tmp_path / "out"
    two = "base = 'base.toml'\n[grid]\nseed = [0, 1]"
    assert cli("sweep", written(two), "--out", out, "--jobs", 1).code == 0
    (out / "runs/seed-1/metrics.json").unlink()
    ended = cli("sweep", written(two), "--out", out, "--resume", "--jobs", 1)
    assert "1 of 2 runs are done already" in ended.out
    assert (out / "runs/seed-1/metrics.json").exists()


def test_a_run_that_fails_is_reported_and_the_others_go_on(cli, written, tmp_path) -> None:
    out = tmp_path / "out"
    text = "base = 'base.toml'\n[grid]\nclients = [50, 2]"
    ended = cli("sweep", written(text), "--out", out, "--jobs", 1)
    assert ended.code == 1
    assert "clients-50 failed: " in " ".join(ended.err.split())
    failed, done = rows(out)
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert "use fewer clients" in failed["error"]
    assert failed["federated.image_auroc"] == ""
    assert (out / "runs/clients-50/error.log").read_text().startswith("Traceback")


def test_unreadable_images_fail_only_their_runs(cli, written, parts, tmp_path) -> None:
    text = f"base = 'base.toml'\n[grid]\ndata.root = ['{tmp_path}/none', '{parts}']"
    cli("sweep", written(text), "--out", tmp_path / "out", "--jobs", 1)
    failed, done = rows(tmp_path / "out")
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert "is not a folder" in failed["error"]


def test_a_folder_that_holds_a_sweep_is_not_overwritten(cli, written, tmp_path) -> None:
    (tmp_path / "out/runs").mkdir(parents=True)
    ended = cli("sweep", written(), "--out", tmp_path / "out")
    assert "already contains a sweep" in ended.sentence()
    assert "name the folder of the sweep" in cli("sweep", written(), "--resume").sentence()


def test_jobs_are_limited_by_cpus_memory_and_runs(written, monkeypatch) -> None:
    runs = plan(written())
    monkeypatch.setattr("fl.sweep.workers.available_cpus", lambda: 8)
    monkeypatch.setattr("fl.sweep.workers.MEMORY", 1)
    assert max_jobs(runs) == 4
    assert max_jobs(plan(written(), "cpus-per-client=4")) == 2
    monkeypatch.setattr("fl.sweep.workers.MEMORY", 2**60)
    assert max_jobs(runs) == 1


@pytest.mark.slow
def test_two_runs_at_a_time_on_ray_give_the_same_results(written, tmp_path, left_over) -> None:
    """And leave no process behind."""
    alone = list(execute_runs(plan(written()), 1))
    assert not any(outcome.error for outcome in alone)
    before = {outcome.run.name: outcome.run.metrics() for outcome in alone}
    both = list(execute_runs(plan(written(), "timeout=1000"), 2))
    assert sorted(outcome.run.name for outcome in both) == sorted(before)
    for outcome in both:
        metrics = outcome.run.metrics()
        assert outcome.error == ""
        assert metrics.config["timeout"] == 1000
        assert metrics.federated == before[outcome.run.name].federated
    ends = time.monotonic() + 20
    while left_over() and time.monotonic() < ends:
        time.sleep(0.2)
    assert left_over() == []


def wait_for_worker() -> psutil.Process:
    """A process that executes runs; on a busy machine it takes a while to start."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "ray::Worker" in " ".join(process.cmdline()):
                    return process
        time.sleep(0.1)
    raise AssertionError("no worker started")


@pytest.mark.slow
def test_a_worker_that_dies_costs_one_run(written) -> None:
    outcomes = []
    for outcome in execute_runs(plan(written()), 2):
        if not outcomes:
            wait_for_worker().kill()
        outcomes.append(outcome)
    assert len(outcomes) == 4
    assert sum("its process died" in outcome.error for outcome in outcomes) == 1
    assert sum(outcome.error == "" for outcome in outcomes) == 3
