"""A study: how runs are grouped, what is computed over seeds, and what page and tables say."""

import csv
import json
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from src.reporting.study.groups import estimate, overall, read_study, study_of
from src.reporting.study.page import study_page, write_study
from src.reporting.study.plots import study_plots
from src.reporting.study.runs import MissingRun, Record
from src.reporting.study.tables import tables_of
from src.storage.run_metrics import RunMetrics
from src.storage.tensor_file import FileError
from tests.reporting.runs import BARE, CLIENT, DATASET, STAGES, content_of, sets_apart

KINDS = [("iid", 0.5), ("quantity", 0.5), ("attribute", 0.5), *(("dirichlet", a) for a in (0.1, 1))]


def made(
    kind: str = "iid", alpha: float = 0.5, seed: int = 0, clients: int = 4, **settings
) -> dict:
    """A run's metrics.json: federated loses a little where the partition is uneven."""
    rng = np.random.default_rng([seed, clients, len(kind), round(10 * alpha)])
    skew = {"iid": 0.0, "quantity": 0.1, "attribute": 0.9}.get(kind, 0.5 / (1 + alpha))
    central = round(0.96 + 0.004 * seed, 3)
    upload = rng.integers(200_000, 400_000, clients) * (1 + round(4 * skew))
    own = np.clip(central - 0.02 * rng.random(clients) - 0.03 * skew, 0, 1)
    alone = central - 0.08 - 0.02 * skew
    return content_of(
        **{
            "config": {
                "seed": seed,
                "clients": clients,
                "out": f"/somewhere/{kind}-{seed}",
                "partition.kind": kind,
                "partition.alpha": alpha,
                "partition.column": "line",
                "evaluate.baseline-dir": f"/somewhere/{seed}",
                "merge.encoding": "int8",
                **settings,
            },
            "seed": seed,
            "dataset": DATASET,
            "federated": _figures(central - 0.01 * skew),
            "centralized": {**_figures(central), "radius": 23.5 + 0.1 * seed},
            "local": {
                "clients": [
                    CLIENT | {"client": c, "patches": 20_000, "images": 20} for c in range(clients)
                ],
                "mean": _figures(alone),
                "worst": {"client": 1, **_figures(alone - 0.02)},
            },
            "bank": {"size": 800, "dim": 100, "radius": 24 + skew, "radius_bound": 24.5 + skew},
            "traffic": {
                "upload_bytes": upload.tolist(),
                "broadcast_bytes": 900_000,
                "stages": [
                    {"round": 1, "stage": "curves", "up": 9000, "down": 88},
                    {"round": 1, "stage": "banks", "up": int(upload.sum()), "down": 141},
                    {"round": 2, "stage": "curves", "up": 9000, "down": 700_000},
                ],
            },
            "seconds": STAGES
            | {"features": 1.5, "coreset": 20.0 + 9 * skew, "evaluate": 12.5, "total": 50.0},
            "work": STAGES | {"features": 5.0, "coreset": 70.0, "evaluate": 40.0},
            "fairness": {
                "clients": [{"client": c, "image_auroc": float(v)} for c, v in enumerate(own)],
                "worst": float(own.min()),
                "worst_client": int(own.argmin()),
                "gap": float(np.ptp(own)),
                "jain": 0.99,
            },
            "heterogeneity": {"feature_shift": skew / 4, "value_skew": skew, "size_skew": skew / 2},
            "versions": {"torch": "2.0"},
            "refused": [],
        }
    )


def _figures(auroc: float) -> dict:
    pixel = {"au_spro": {"0.05": auroc - 0.5}, "aupro": auroc - 0.2}
    return {"image_auroc": auroc, "image_ap": auroc + 0.01, **pixel}


def of(*metrics: dict):
    records = [
        Record(f"run-{i}", Path("runs") / f"run-{i}", RunMetrics.model_validate(content))
        for i, content in enumerate(metrics)
    ]
    return study_of(records, sets_apart)


def whole(clients: int = 4):
    """Five groups of three seeds."""
    return of(*(made(kind, alpha, seed, clients) for kind, alpha in KINDS for seed in (0, 1, 2)))


def test_interval_of_three_values_worked_by_hand() -> None:
    # s = 0.01, t(0.975, 2) = 4.302653 from tables, 4.302653 * 0.01 / sqrt(3) = 0.0248414
    found = estimate([0.90, 0.91, 0.92])
    assert found.mean == pytest.approx(0.91)
    assert found.half == pytest.approx(0.0248414, abs=1e-6)
    assert found.n == 3


def test_one_value_has_no_interval_and_none_has_no_estimate() -> None:
    assert (estimate([0.9]).mean, estimate([0.9]).half) == (0.9, None)
    assert estimate([]) is None


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=9, unique=True))
def test_interval_is_scipys(values) -> None:
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
    )
    found = estimate(values)
    assert found.mean - found.half == pytest.approx(low, abs=1e-9)
    assert found.mean + found.half == pytest.approx(high, abs=1e-9)


def test_groups_differ_in_settings_that_matter_and_hold_the_seeds() -> None:
    study = whole()
    assert [g.label for g in study.groups] == [
        "attribute",
        "dirichlet, alpha 0.1",
        "dirichlet, alpha 1",
        "iid",
        "quantity, alpha 0.5",
    ]
    assert all([run.seed for run in g.runs] == [0, 1, 2] for g in study.groups)
    assert study.shared["merge.encoding"] == "int8"
    assert not {"out", "seed", "partition.kind"} & study.shared.keys()


def test_places_engines_and_unused_settings_set_no_runs_apart() -> None:
    first = made("iid", 0.1, 0, **{"engine": "ray", "cache.dir": "/a", "cpus-per-client": 1})
    other = made("iid", 0.9, 1, **{"engine": "inline", "cache.dir": "/b", "cpus-per-client": 4})
    first["config"] |= {"resume": True, "timeout": 60}
    other["config"] |= {"resume": False, "timeout": 90}
    assert [len(g.runs) for g in of(first, other).groups] == [2]


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([{"merge.encoding": "half"}, {}], ["encoding half", "encoding int8"]),
        ([{"num-server-rounds": 10}, {"num-server-rounds": 2}], ["rounds 2", "rounds 10"]),
        ([{"model.backbone": "resnet18"}, {"model.backbone": "b0"}], ["b0", "resnet18"]),
        ([{"x.cut": True}, {"x.cut": False}], ["no cut", "cut"]),
        ([{"model.weights": "/anywhere/w.pt"}, {}], ["default weights", "weights w.pt"]),
        ([{"a.size": 1, "b.size": 2}, {"a.size": 2, "b.size": 1}], ["a.size 1", "a.size 2"]),
    ],
)
def test_labels_are_short(settings, labels) -> None:
    plain = {"model.weights": ""} if "model.weights" in settings[0] else {}
    found = [g.label for g in of(*(made(**{**plain, **each}) for each in settings)).groups]
    assert [label.partition(", ")[0] for label in found] == labels


def test_datasets_go_by_their_names() -> None:
    other = made() | {"dataset": DATASET | {"name": "visa"}}
    assert [g.label for g in of(made(), other).groups] == ["mtd", "visa"]


def test_a_repeated_run_does_not_count_twice() -> None:
    study = of(made(), made(seed=1), made())
    assert len(study.runs) == 2
    assert study.missing == [MissingRun("run-2", "it has the settings and the seed of run-0")]


def test_differences_are_taken_within_a_seed() -> None:
    # central 0.96 and 0.964 vary with the seed; federated - centralized is -0.009 in both
    group = of(made("attribute"), made("attribute", seed=1)).groups[0]
    found = group.estimate("difference.centralized.image_auroc")
    assert found.mean == pytest.approx(-0.009)
    assert found.half == pytest.approx(0, abs=1e-9)
    assert group.estimate("centralized.image_auroc").half > 0.02


def test_a_run_without_baseline_is_left_out_of_the_difference_only() -> None:
    bare = made(seed=1)
    del bare["centralized"]
    group = of(made(), bare, made(seed=2)).groups[0]
    assert group.estimate("federated.image_auroc").n == 3
    assert group.estimate("difference.centralized.image_auroc").n == 2


def test_factors_worked_by_hand() -> None:
    metrics = made()
    metrics["traffic"]["upload_bytes"] = [40_000, 40_000, 40_000, 40_000]
    figures = of(metrics).runs[0].values
    assert figures["factor.every_patch"] == 4 * 20_000 * 100 * 4 / 160_000
    assert figures["factor.one_bank"] == 800 * 100 * 4 / 160_000


def test_overall_is_over_seeds_not_over_runs() -> None:
    # 3 seeds x 5 groups: an interval over 15 runs would count the same data five times
    found = overall(whole(), "federated.image_auroc")
    means = [
        np.mean([g.values("federated.image_auroc")[i] for g in whole().groups]) for i in range(3)
    ]
    assert found == estimate([float(m) for m in means])
    uneven = overall(of(made(), made(seed=1), made("attribute")), "federated.image_auroc")
    assert uneven.half is None
    assert uneven.mean == pytest.approx((0.962 + 0.951) / 2)


def test_main_table_ends_with_all_groups(tmp_path) -> None:
    # mean over the groups within each seed, then the interval over the seeds
    table = tables_of(whole(), tmp_path)[0]
    assert table.rows[-1][:2] == ["all groups", ""]
    assert table.rows[-1][3] == "0.961 ± 0.010"


@pytest.fixture
def written(tmp_path):
    """written(study): the folder of its report."""

    def write(study) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return write_study(tmp_path / "report", study).parent

    return write


class Seen(HTMLParser):
    """What a page loads, shows and says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "img":
            self.images.append(found)
        if tag in ("script", "link", "iframe"):
            self.loads.append(tag)

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained_and_every_figure_is_described(written) -> None:
    folder = written(whole())
    seen = Seen((folder / "report.html").read_text())
    names = {"compared", "upload", "heterogeneity", "radius", "clients", "seconds", "bytes"}
    assert {p.name for p in (folder / "figures").iterdir()} == {
        f"{name}.{form}" for name in names for form in ("svg", "png")
    }
    assert len(seen.images) == len(names)
    assert all(image["src"].startswith("data:image/svg+xml") for image in seen.images)
    assert all(len(image["alt"]) > 20 for image in seen.images)
    assert not seen.loads


def test_tables_hold_full_numbers_and_the_text_of_the_page(written) -> None:
    folder = written(whole())
    rows = list(csv.DictReader((folder / "tables" / "main.csv").open()))
    row = next(row for row in rows if row["group"] == "attribute")
    assert float(row["federated.image_auroc"]) == pytest.approx(0.955)
    assert float(row["federated.image_auroc.half"]) == pytest.approx(0.004 * 4.302653 / 3**0.5)
    assert row["federated.image_auroc.n"] == "3"
    marked = (folder / "tables" / "main.md").read_text()
    assert "| attribute | 3 | 0.866 ± 0.010 | 0.955 ± 0.010 | 0.964 ± 0.010 |" in marked
    assert {p.stem for p in (folder / "tables").glob("*.csv")} == {
        *("main", "metrics", "costs", "fairness", "heterogeneity", "seconds", "bytes", "runs")
    }


def test_bytes_of_a_stage_are_summed_over_rounds(written) -> None:
    folder = written(of(made()))
    rows = list(csv.DictReader((folder / "tables" / "bytes.csv").open()))
    curves = next(row for row in rows if row["stage"] == "curves")
    assert float(curves["up, all clients"]) == 18_000
    assert float(curves["down, each client"]) == 700_088


def test_files_are_the_same_bytes_again() -> None:
    first, second = study_plots(whole()), study_plots(whole())
    assert [(d.svg, d.png) for d in first] == [(d.svg, d.png) for d in second]
    assert not any(b"<dc:date>" in d.svg for d in first)


def test_one_run_has_a_page_without_intervals(written) -> None:
    text = Seen((written(of(made())) / "report.html").read_text()).text
    assert " ± " not in text
    assert "One seed: there are no intervals." in text


@pytest.mark.parametrize(
    "metrics",
    [
        [content_of()],
        [content_of(seed=0), content_of(seed=1)],
        [content_of(federated={"image_auroc": 0.9}), content_of(seed=1)],
        [made() | {"local": {}, "centralized": None, "traffic": BARE["traffic"], "fairness": {}}],
    ],
)
def test_what_is_absent_is_left_out(metrics, written) -> None:
    text = Seen((written(of(*metrics)) / "report.html").read_text()).text
    assert "nan" not in text.lower().split()
    assert "None" not in text


def test_many_clients_and_a_figure_that_does_not_vary(written) -> None:
    folder = written(of(*(made(seed=seed, clients=64) for seed in (0, 1))))
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert "clients" in drawn
    assert not {"upload", "heterogeneity"} & drawn


def test_uploads_that_are_about_the_same_are_no_figure() -> None:
    runs = made(), made(**{"merge.encoding": "half"})
    assert "upload" not in {drawn.name for drawn in study_plots(of(*runs))}
    runs[0]["traffic"]["upload_bytes"] = [2 * n for n in runs[1]["traffic"]["upload_bytes"]]
    assert "upload" in {drawn.name for drawn in study_plots(of(*runs))}


def test_names_are_escaped(tmp_path) -> None:
    study = study_of(
        [
            Record("a<b|c", tmp_path, RunMetrics.model_validate(made())),
            Record("d", tmp_path, RunMetrics.model_validate(made(seed=1))),
        ],
        sets_apart,
        [MissingRun("e", "it failed: <script>")],
    )
    tables = tables_of(study, tmp_path)
    text = study_page(study, tables, [])
    assert "<script>" not in text
    assert "a&lt;b|c" in text
    assert "a<b&#124;c" in (write_study(tmp_path, study).parent / "tables/runs.md").read_text()


def test_different_versions_and_lost_clients_are_said(tmp_path) -> None:
    other = made(seed=1) | {"versions": {"torch": "2.1"}}
    other["refused"] = [{"client": 3, "reason": "it was silent"}]
    study = of(made(), other)
    text = " ".join(Seen(study_page(study, tables_of(study, tmp_path), [])).text.split())
    assert "different versions of torch" in text
    assert "run-1 left out client 3: it was silent" in text


@pytest.fixture
def swept(tmp_path):
    """A sweep of two finished runs, one that failed and one that was broken off."""
    for seed in (0, 1):
        folder = tmp_path / "sweep" / "runs" / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(made(seed=seed)))
    (tmp_path / "sweep/runs/seed-0/report.html").write_text("")
    for name, log in (("failed", "Traceback\n  x\nOSError: disk full\n"), ("stopped", None)):
        (tmp_path / "sweep/runs" / name).mkdir()
        if log:
            (tmp_path / "sweep/runs" / name / "error.log").write_text(log)
    return tmp_path / "sweep"


def test_a_sweep_tells_what_is_missing_and_links_its_runs(swept) -> None:
    study = read_study([swept], sets_apart)
    assert [run.name for run in study.runs] == ["seed-0", "seed-1"]
    assert study.missing == [
        MissingRun("failed", "it failed: OSError: disk full"),
        MissingRun("stopped", "it has not finished"),
    ]
    text = write_study(swept / "report", study).read_text()
    assert 'href="../runs/seed-0/report.html"' in text
    assert "../runs/seed-1" not in text


def test_a_run_named_twice_is_read_once(swept) -> None:
    study = read_study([swept, swept / "runs" / "seed-0"], sets_apart)
    assert len(study.runs) == 2
    assert [run.name for run in study.missing] == ["sweep/failed", "sweep/stopped"]


def test_what_is_no_run_is_refused_in_a_sentence(tmp_path, swept) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.toml").write_text("")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "metrics.json").write_text('{"seed": ')
    for name, said in (
        ("nowhere", "there is no folder"),
        (".", "neither a run directory"),
        ("begun", "has not finished"),
        ("torn", "Invalid JSON"),
    ):
        with pytest.raises(FileError, match=said):
            read_study([tmp_path / name], sets_apart)
    for path in swept.glob("runs/*/metrics.json"):
        path.unlink()
    with pytest.raises(FileError, match="nothing to report"):
        read_study([swept], sets_apart)
