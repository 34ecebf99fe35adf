"""What a study says of private runs: lines by budget and by images, attacks, and the table."""

import json
from pathlib import Path

import pytest

from src.reporting.study.groups import read_study, study_of
from src.reporting.study.page import write_study
from src.reporting.study.privacy_plots import privacy_plots
from src.reporting.study.runs import Record
from src.reporting.study.tables import tables_of
from src.storage.run_metrics import RunMetrics
from tests.reporting.runs import BARE, DATASET, content_of, sets_apart


def made(mechanism: str, epsilon: float, seed: int, images: int = 600) -> dict:
    auroc = 0.75 + 0.01 * epsilon + 0.001 * seed + images / 1e5
    return content_of(
        **{
            "config": {
                "seed": seed,
                "privacy.mechanism": mechanism,
                "privacy.epsilon": epsilon,
                "data.train-images": images,
            },
            "seed": seed,
            "dataset": DATASET,
            "federated": {"image_auroc": auroc},
            "centralized": {"image_auroc": 0.95},
            "comparators": {
                "k-means without noise": {"image_auroc": 0.86},
                "public images alone": {"image_auroc": 0.82},
            },
            "privacy": {"mechanism": mechanism, "epsilon": epsilon},
        }
    )


def of(*metrics: dict):
    records = [
        Record(f"run-{i}", Path("nowhere"), RunMetrics.model_validate(content))
        for i, content in enumerate(metrics)
    ]
    return study_of(records, sets_apart)


@pytest.fixture
def runs(tmp_path):
    """Two mechanisms, two budgets, two seeds; the first of each group is audited."""
    number = 0
    for mechanism in ("dp_gaussian", "dp_other"):
        for epsilon in (1.0, 4.0):
            for seed in (0, 1):
                folder = tmp_path / "runs" / f"{number:02d}"
                folder.mkdir(parents=True)
                number += 1
                text = json.dumps(made(mechanism, epsilon, seed))
                (folder / "metrics.json").write_text(text)
                found = {"epsilon_lower_bound": 0.9 * epsilon, "membership_auc": 0.5 + epsilon / 90}
                if not seed:
                    (folder / "audit.json").write_text(json.dumps(found))
    return tmp_path


def test_a_line_a_mechanism_by_budget_and_a_mark_a_group_by_attack(runs) -> None:
    study = read_study([runs], sets_apart)
    plots = {plot.name: plot for plot in privacy_plots(study)}
    assert set(plots) == {"epsilon", "attack"}
    assert plots["epsilon"].svg.count(b"<!-- dp_") == 2  # a name in the legend for each line
    assert plots["attack"].svg.count(b"<!-- dp_") == 4


def test_a_line_by_the_number_of_images() -> None:
    study = of(*(made("dp_gaussian", 4.0, seed, n) for n in (100, 600) for seed in (0, 1)))
    assert [plot.name for plot in privacy_plots(study)] == ["images"]


def test_the_table_holds_claim_bound_attack_and_comparators(runs) -> None:
    study = read_study([runs], sets_apart)
    table = next(t for t in tables_of(study, runs) if t.name == "privacy")
    row = next(r for r in table.numbers if r["privacy.epsilon"] == pytest.approx(4.0))
    assert row["audit.epsilon_lower_bound"] == pytest.approx(3.6)
    assert row["audit.membership_auc"] == pytest.approx(0.5 + 4 / 90)
    assert row["comparators.public images alone.image_auroc"] == pytest.approx(0.82)
    assert "costs more than any of them" in table.note


def test_the_page_shows_it_all(runs) -> None:
    page = write_study(runs / "report", read_study([runs], sets_apart)).read_text()
    assert 'id="epsilon"' in page
    assert 'id="attack"' in page
    assert "<h2>Privacy</h2>" in page


def test_without_private_runs_there_is_nothing_of_it() -> None:
    plain = [made("none", 4.0, seed) for seed in (0, 1)]
    for metrics in plain:
        metrics["privacy"] = BARE["privacy"]
        del metrics["comparators"]
    study = of(*plain)
    assert privacy_plots(study) == []
    assert "privacy" not in [t.name for t in tables_of(study, Path()) if t.name == "privacy"]
