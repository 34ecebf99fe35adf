"""fedpatchcore report: what it prints, where it writes, what it refuses."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fl.cli.main import main
from tests.reporting.runs import content_of


@pytest.fixture
def report(capfd, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """report(*words): exit status, output and errors of the command, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedpatchcore", "report", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Two partitions with two seeds each, and a run that failed."""
    folder = tmp_path / "sweep"
    for kind, loss in (("iid", 0.0), ("quantity", 0.02)):
        for seed in (0, 1):
            run = folder / "runs" / f"{kind}-{seed}"
            run.mkdir(parents=True)
            (run / "metrics.json").write_text(json.dumps(_metrics(kind, seed, loss)))
    (folder / "runs" / "late").mkdir()
    (folder / "runs" / "late" / "error.log").write_text("Traceback\nOSError: disk full\n")
    return folder


def _metrics(kind: str, seed: int, loss: float) -> dict:
    centralized = 0.95 + 0.01 * seed
    return content_of(
        config={"seed": seed, "partition.kind": kind},
        seed=seed,
        federated={"image_auroc": centralized - loss},
        centralized={"image_auroc": centralized},
    )


def test_a_sweep_is_told_in_a_table_and_a_page(report, sweep) -> None:
    code, out, err = report(sweep)
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert code == 0
    # t(0.975, 1) = 12.706; s / sqrt(2) of 0.95 and 0.96 is 0.005
    assert rows["iid"][1:] == ["0.955", "±", "0.064", "0.955", "±", "0.064", "0.000", "±", "0.000"]
    assert rows["quantity"][1:4] == ["0.935", "±", "0.064"]
    assert rows["quantity"][7:] == ["−0.020", "±", "0.000"]
    assert "late is not in the report: it failed: OSError: disk full" in err
    assert out.splitlines()[-1] == str(sweep / "report" / "report.html")
    assert (sweep / "report" / "tables" / "main.csv").is_file()
    assert (sweep / "report" / "figures" / "compared.svg").is_file()


def test_runs_can_be_named_one_by_one_and_the_report_put_elsewhere(report, sweep, tmp_path) -> None:
    runs = sweep / "runs"
    code, out, _ = report(runs / "iid-0", runs / "quantity-0", "--out", tmp_path / "page")
    assert code == 0
    assert "±" not in out.split("\n", 1)[1]
    assert (tmp_path / "page" / "report.html").is_file()
    assert not (runs / "iid-0" / "report").exists()


def test_a_report_can_be_made_again(report, sweep) -> None:
    report(sweep)
    first = (sweep / "report" / "report.html").read_bytes()
    assert report(sweep)[0] == 0
    assert (sweep / "report" / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no folder"),
        ([""], "neither a run directory"),
        (["sweep/runs/late"], "neither a run directory"),
        (["sweep", "--out", "sweep/runs/iid-0/metrics.json"], "is a file; name a folder"),
    ],
)
def test_what_cannot_be_reported_is_refused_in_a_sentence(
    report, sweep, tmp_path, words, said
) -> None:
    code, _, err = report(*(w if w.startswith("--") else tmp_path / w for w in words))
    assert code == 1
    assert said in err
    assert "Traceback" not in err
