"""fedpatchcore data check: its output, its exit status, and a run of the command it suggests."""

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl.cli.terminal import resolve, show_partition
from src.data import write_synthetic


@pytest.fixture
def check(cli) -> Callable[..., Any]:
    """check(*words) runs `fedpatchcore data check` in this process and returns the result."""
    return lambda *words: cli("data", "check", *words)


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Two objects with 60 training images each, 20 from each of three lines."""
    root = tmp_path_factory.mktemp("generated") / "set"
    return write_synthetic(root, train=60, good=3, size=(64, 80))


@pytest.fixture
def parts(generated, tmp_path) -> Path:
    return Path(shutil.copytree(generated, tmp_path / "set"))


def _command(result: Any) -> list[str]:
    """The words of the suggested command, split as by a shell."""
    command = result.out[result.out.index("fedpatchcore simulate") :]
    return shlex.split(command.replace("\\\n", ""))  # shlex does not join continued lines


def test_an_intact_dataset_is_shown_by_object_split_and_kind(check, generated) -> None:
    result = check(generated)
    assert (result.code, result.err) == (0, "")
    rows = [line.split() for line in result.out.splitlines()]
    assert ["bracket", "train", "good", "60"] in rows
    assert ["object", "split", "kind", "images", "marked"] in rows  # and no other mask state
    assert ["test", "scratch", "4", "4"] in rows
    assert ["connector", "64", "×", "80:", "75", "RGB:", "75"] in rows
    assert "line-a: 40, line-b: 40, line-c: 40  yes" in result.out
    assert "No errors, no warnings." in result.out
    head = result.out.split("\nTo run on this dataset:")[0]
    assert max(map(len, head.splitlines())) <= 80


def test_the_suggested_command_partitions_the_data(check, parts, capfd) -> None:
    root = parts.rename(parts.parent / "a plant's [red] set")
    words = _command(check(root, "--objects", "bracket"))
    assert words[:2] == ["fedpatchcore", "simulate"]
    settings = resolve(None, words[3::2], None)
    assert (settings.data_kind, settings.data_root) == ("autovi", str(root))
    assert (settings.partition_column, settings.clients) == ("line", 3)
    show_partition(settings)
    assert "0       20      ·       ·       20" in capfd.readouterr().out


def test_a_column_of_small_values_is_not_suggested(check, parts) -> None:
    for name in ("bracket", "connector"):
        path = parts / name / "metadata.csv"
        lines = path.read_text().replace("line-a", "line-b").replace("line-c", "line-b")
        path.write_text(lines.replace("line-b", "line-z", 3))
    result = check(parts)
    assert "line-b: 114, line-z: 6  yes" in result.out
    assert "partition." not in " ".join(_command(result))


def _save(path: Path, pixels: np.ndarray) -> None:  # [H, W] uint8
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def visa(tmp_path) -> Path:
    """An object in the layout of VisA: 20 training images, 2 normal and 2 defective test images."""
    rng, root = np.random.default_rng(7), tmp_path / "visa"
    rows = [("object", "split", "label", "image", "mask")]
    for i in range(24):
        marked = np.zeros((64, 64), np.uint8)
        marked[20:40, 20:40] = i >= 22
        image, mask = f"pcb1/Data/Images/{i:03d}.JPG", f"pcb1/Data/Masks/{i:03d}.png"
        _save(root / image, rng.integers(90, 110, (64, 64), np.uint8) + 120 * marked)
        if i < 22:
            rows.append(("pcb1", "train" if i < 20 else "test", "normal", image, ""))
        else:
            _save(root / mask, marked)
            rows.append(("pcb1", "test", "anomaly", image, mask))
    (root / "split_csv").mkdir()
    with (root / "split_csv/1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def test_the_command_suggested_for_visa_runs_to_its_report(check, cli, visa, cache) -> None:
    result = check(visa)
    assert "No errors" in result.out
    small = {"model.weights": "random", "data.image-size": 64, "clients": 2, "cache.dir": cache}
    sets = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    out = visa.parent / "run"
    assert cli(*_command(result)[1:], *sets, "--engine", "inline", "--out", out).code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    dataset = metrics["dataset"]
    assert dataset["objects"] == ["pcb1"]
    assert (dataset["train_images"], dataset["test_images"]) == (20, 4)
    assert metrics["federated"]["image_auroc"] == 1.0  # the defect is a bright square on grey noise
    assert metrics["federated"]["aupro"] > 0.5
    assert (out / "report.html").is_file()


def test_errors_end_with_status_one_and_long_lists_are_folded(check, parts) -> None:
    for path in sorted((parts / "bracket/train/good").iterdir())[:5]:
        path.write_bytes(b"no image")
    result = check(parts)
    assert result.code == 1
    lines = result.out.split("error: ")[1].split("\n\n")[0].splitlines()
    assert " ".join(lines[:2]).startswith("5 images that cannot be read. A run stops there:")
    assert [line.strip() for line in lines[2:]] == [
        *(f"bracket/train/good/000{i}.png (unknown image format)" for i in range(3)),
        "and 2 more",
    ]
    assert "1 error, no warnings." in result.out
    assert "After the errors are fixed, run:\nfedpatchcore simulate" in result.out


def test_warnings_alone_end_with_status_zero(check, parts) -> None:
    mask = next((parts / "bracket/ground_truth/stain/0000").iterdir())
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(mask)
    result = check(parts)
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines()]
    assert ["object", "split", "kind", "images", "marked", "empty"] in rows
    assert ["test", "stain", "4", "3", "1"] in rows
    assert ["test", "scratch", "4", "4", "·"] in rows
    assert "warning: 1 mask without a marked pixel" in result.out
    assert "No errors, 1 warning." in result.out
    quick = check(parts, "--quick")
    assert "No errors, no warnings (headers only)." in quick.out
    rows = [line.split() for line in quick.out.splitlines()]
    assert ["object", "split", "kind", "images", "masked"] in rows
    assert ["test", "stain", "4", "4"] in rows


def test_many_sizes_are_shown_by_their_range(check, parts) -> None:
    for i in range(4):
        pixels = np.full((30 + i, 50 - i, 3), i, np.uint8)
        Image.fromarray(pixels).save(parts / f"bracket/train/good/{i:04d}.png")
    out = check(parts).out
    assert "64 × 80: 71, 30 × 50: 1, 31 × 49: 1, and 2 other" in out
    assert "height 30 to 64, width 47 to 80" in out


def test_brackets_in_a_name_are_not_markup(check, parts) -> None:
    (parts / "bracket").rename(parts / "a [bold]")
    out = check(parts).out
    assert "a [bold] has a defects_config.json" in out
    assert ["a", "[bold]", "train", "good", "60"] in [line.split() for line in out.splitlines()]


def test_a_narrow_terminal_does_not_truncate_names_or_counts(check, parts, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    Image.new("L", (80, 64)).save(next((parts / "bracket/ground_truth/stain/0000").iterdir()))
    out = check(parts).out
    assert max(map(len, out.split("\nTo run on this dataset:")[0].splitlines())) <= 50
    assert "…" not in out
    assert "empty" in out


def test_an_empty_folder_is_an_error(check, tmp_path) -> None:
    result = check(tmp_path)
    assert result.code == 1
    assert "error: no object folder under" in result.out
    assert "fedpatchcore simulate" not in result.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kind", "mvtec"], "unknown kind of data 'mvtec': choose auto, folder, autovi, visa"),
        (["--objects", "valve"], "has no object valve: choose from bracket, connector"),
    ],
)
def test_invalid_arguments_are_reported(check, generated, words, sentence) -> None:
    result = check(generated, *words)
    assert result.code == 1
    assert sentence in result.err
    assert "Traceback" not in result.out + result.err
