"""On Magnetic Tile Defects, divided by the lamp's exposure, federation is worth its traffic."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
DATA = CHECKOUT.parent / "shared" / "mtd"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no data set at {DATA}"),
]


@dataclass(frozen=True)
class Measured:
    """A run that ended, and what it took."""

    metrics: dict
    peak: float  # GiB resident


@pytest.fixture(scope="module")
def exposure(tmp_path_factory) -> Measured:
    """configs/mtd-exposure.toml, from no cache, in a process of its own."""
    folder = tmp_path_factory.mktemp("mtd")
    out = folder / "run"
    command = [sys.executable, "-m", "fl.cli.main", "simulate", "configs/mtd-exposure.toml"]
    command += ["--engine", "inline", "--out", str(out)]
    command += ["--set", f"data.root={DATA}", "--set", f"cache.dir={folder / 'cache'}"]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, (folder / "said").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    return Measured(metrics, usage.ru_maxrss / 2**20)


def test_federated_is_as_good_as_centralized(exposure: Measured) -> None:
    federated = exposure.metrics["federated"]["image_auroc"]
    assert federated >= 0.950
    assert federated >= exposure.metrics["centralized"]["image_auroc"] - 0.005


def test_a_client_alone_is_not(exposure: Measured) -> None:
    local = exposure.metrics["local"]
    assert 0.85 <= local["mean"]["image_auroc"] <= 0.90
    assert len(local["clients"]) == 6
    assert local["worst"]["image_auroc"] < local["mean"]["image_auroc"]


def test_all_images_are_counted(exposure: Measured) -> None:
    dataset = exposure.metrics["dataset"]
    assert (dataset["train_images"], dataset["test_images"]) == (762, 582)
    assert sum(c["images"] for c in exposure.metrics["local"]["clients"]) == 762


def test_measured_radius_is_within_the_certificate(exposure: Measured) -> None:
    bank = exposure.metrics["bank"]
    assert 0 < bank["radius"] <= bank["radius_bound"]


def test_an_ordinary_machine_has_the_memory(exposure: Measured) -> None:
    assert exposure.peak < 4
