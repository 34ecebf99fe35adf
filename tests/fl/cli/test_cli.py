"""The command line does what it says; what goes wrong is a sentence on stderr and exit code 1."""

import json
import re
import shutil
from pathlib import Path

import pytest

from fl.cli.terminal import resolve
from fl.workspace.directory import begin_run
from src.data.partition import Partition

COMMANDS = ("demo", "simulate", "predict", "evaluate")


@pytest.fixture
def small(parts, cache) -> list[str]:
    """Options of a run on the small parts, in this process."""
    values = {
        "data.kind": "autovi",
        "data.root": parts,
        "data.image-size": 64,
        "cache.dir": cache,
        "evaluate.maps": "false",
        "clients": 3,
    }
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return [*sets, "--engine", "inline"]


def test_simulation_prints_who_holds_what_and_what_came_of_it(cli, small, tmp_path) -> None:
    ended = cli("simulate", *small, "--out", tmp_path / "run")
    assert ended.code == 0
    assert "training images by client and object (partition iid)" in ended.out
    for word in ("local mean", "local worst", "federated", "centralized", "Image AUROC: "):
        assert word in ended.out
    assert str(tmp_path / "run" / "report.html") in ended.out.replace("\n", "")
    assert (tmp_path / "run" / "report.html").is_file()
    assert "Traceback" not in ended.err


def test_a_run_goes_on_in_its_run_directory_with_its_own_settings(cli, small, tmp_path) -> None:
    out = tmp_path / "run"
    assert cli("simulate", *small, "--out", out).code == 0
    before = (out / "scores.csv").read_bytes()
    (out / "metrics.json").unlink()  # as if it had broken off
    ended = cli("simulate", "--resume", out)
    assert ended.code == 0, ended.err
    assert (out / "scores.csv").read_bytes() == before
    assert json.loads((out / "metrics.json").read_text())["config"]["resume"] is True
    assert "resume = false" in (out / "config.toml").read_text()  # run again, it begins anew
    said = cli("simulate", "--resume", out, "--out", tmp_path / "other").sentence()
    assert "--resume uses the settings and directory of that run" in said
    said = cli("simulate", "--resume", tmp_path / "none").sentence()
    assert f"configuration file {tmp_path / 'none' / 'config.toml'} does not exist" in said


def test_a_deployed_run_goes_on_with_as_many_nodes(cli, small, parts, tmp_path) -> None:
    words = [*small[:-2], "--set", "data.shared=false", "--out", tmp_path / "run"]
    settings = resolve(None, [w for w in map(str, words) if "=" in w], tmp_path / "run")
    (tmp_path / "run").mkdir()
    begin_run(tmp_path / "run", settings)
    said = cli("deploy", "run", "--resume", tmp_path / "run", "--data", parts).sentence()
    assert "that run had 3 nodes with data of their own" in said


def test_demo_takes_its_configuration_file(cli, small, tmp_path) -> None:
    ended = cli("demo", *small, "--out", tmp_path / "run")
    assert ended.code == 0
    config = json.loads((tmp_path / "run" / "metrics.json").read_text())["config"]
    assert (config["partition.kind"], config["partition.column"]) == ("dirichlet", "line")


def test_run_directory_is_made_anew_where_none_is_named(cli, small, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lamps.toml").write_text("partition.kind = 'quantity'\n")
    assert cli("simulate", "lamps.toml", *small).code == 0
    [folder] = (tmp_path / "outputs").iterdir()
    assert re.fullmatch(r"lamps-\d{8}-\d{6}", folder.name)


REFUSED = {
    "no such file": (["none.toml"], "configuration file none.toml does not exist"),
    "unknown setting": (["--set", "sed=3"], "sed: unknown setting; did you mean seed?"),
    "out of range": (["--set", "seed=-1"], "seed = -1: should be greater than or equal to 0"),
    "no value": (["--set", "seed"], "--set seed: write key=value"),
    "no root": (["--set", "data.root="], "data.root: name the folder of the autovi dataset"),
    "absent root": (["--set", "data.root=/absent"], "data root /absent is not a folder"),
    "unknown object": (["--set", "data.objects=valve"], "has no object valve: choose from bracket"),
    "unknown column": (
        ["--set", "partition.kind=attribute", "--set", "partition.column=colour"],
        "colour",
    ),
    "too many clients": (["--set", "clients=7"], "7"),
    "too few clients": (["--set", "min-clients=4"], "there are only 3 clients"),
    "absent partition": (["--set", "partition.file=/absent.json"], "cannot read partition"),
    "unknown backbone": (["--set", "model.backbone=resnet51"], "backbone 'resnet51' is unknown"),
    "absent weights": (["--set", "model.weights=/absent.pth"], "/absent.pth does not exist"),
    "unknown engine": (["--engine", "dask"], "engine = 'dask': should be 'ray' or 'inline'"),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_simulation_that_cannot_start_says_why(cli, small, tmp_path, words, sentence: str) -> None:
    ended = cli("simulate", *small, "--out", tmp_path / "run", *words)
    assert sentence in ended.sentence()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_run_directory_that_cannot_be_made_is_named(cli, small, tmp_path) -> None:
    (tmp_path / "run").write_text("a file")
    assert str(tmp_path / "run") in cli("simulate", *small, "--out", tmp_path / "run").sentence()


@pytest.fixture
def spoiled(cli, small, parts, tmp_path) -> tuple[list[str], Path]:
    """Options of a run on data of which client 1 cannot read a training image; and that image."""
    root = shutil.copytree(parts, tmp_path / "parts")
    assert cli("simulate", *small, "--out", tmp_path / "before").code == 0
    image = root / Partition.load(tmp_path / "before" / "partition.json").clients[1].train[0]
    image.write_bytes(b"no image")
    return [*small, "--set", f"data.root={root}", "--set", "evaluate.baselines=false"], image


def test_run_that_fails_names_the_client_and_its_reason(cli, spoiled, tmp_path) -> None:
    options, image = spoiled
    sentence = cli("simulate", *options, "--out", tmp_path / "run").sentence()
    assert "only 2 of 3 clients sent a bank that can be merged, 3 are needed" in sentence
    assert f"client 1: DataError: cannot read image {image}" in sentence


def test_run_that_goes_on_without_a_client_says_so(cli, spoiled, tmp_path) -> None:
    options, image = spoiled
    ended = cli("simulate", *options, "--out", tmp_path / "run", "--set", "min-clients=2")
    assert ended.code == 0
    said = ended.err.replace("\n", "").replace(" ", "")  # the console breaks lines where it must
    assert f"client1wasleftout:DataError:cannotreadimage{image}" in said
    assert "Traceback" not in ended.out + ended.err


def test_prediction_writes_maps_overlays_and_scores(cli, clean, parts, tmp_path) -> None:
    model, images = clean.out / "model.safetensors", parts / "bracket/test/scratch"
    ended = cli("predict", model, images, "--out", tmp_path / "out")
    assert ended.code == 0
    count = len(list(images.iterdir()))
    assert f"{count} images scored" in ended.out
    for folder in ("maps", "overlays"):
        assert len(list((tmp_path / "out" / folder).iterdir())) == count
    lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert lines[0] == "image,map,score,threshold,anomalous"
    assert len(lines) == 1 + count


def test_evaluation_prints_the_run_s_own_federated_figures(cli, clean, parts, tmp_path) -> None:
    path = tmp_path / "made" / "figures.json"
    model = clean.out / "model.safetensors"
    ended = cli("evaluate", model, "--data", parts, "--kind", "autovi", "--out", path)
    assert ended.code == 0
    printed = {line.split()[0]: line.split()[-1] for line in ended.out.splitlines() if line.strip()}
    federated = clean.metrics["federated"]
    for key in ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "aupro"):
        assert float(printed[key]) == pytest.approx(federated[key], abs=2e-3)
    assert float(printed["au_spro@0.05"]) == pytest.approx(federated["au_spro"]["0.05"], abs=2e-3)
    written = json.loads(path.read_text())
    assert written["mean"]["image_auroc"] == pytest.approx(federated["image_auroc"])


@pytest.fixture
def truncated(clean, tmp_path) -> Path:
    path = tmp_path / "truncated.safetensors"
    path.write_bytes((clean.out / "model.safetensors").read_bytes()[:-100])
    return path


def test_model_that_cannot_be_used_is_named(cli, truncated, parts, clean, tmp_path) -> None:
    good = parts / "bracket/test/good"
    for model, sentence in (
        (tmp_path / "absent", "absent does not exist"),
        (truncated, f"{truncated} is truncated"),
        (clean.out / "metrics.json", "metrics.json is truncated or not a safetensors file"),
        (clean.out, f"{clean.out}"),
    ):
        assert sentence in cli("predict", model, good, "--out", tmp_path / "o").sentence()
        words = ("evaluate", model, "--data", parts, "--kind", "autovi")
        assert sentence in cli(*words).sentence()


def test_images_that_cannot_be_used_are_named(cli, clean, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no image")
    model = clean.out / "model.safetensors"
    for place, sentence in (
        ("absent", "absent does not exist"),
        ("empty", "empty holds no images"),
        ("broken.png", "cannot read image"),
    ):
        words = ("predict", model, tmp_path / place, "--out", tmp_path / "out")
        assert sentence in cli(*words).sentence()


def test_folder_of_results_that_cannot_be_made_is_named(cli, clean, parts, tmp_path) -> None:
    (tmp_path / "out").write_text("a file")
    words = ("predict", clean.out / "model.safetensors", parts / "bracket/test/good")
    assert str(tmp_path / "out") in cli(*words, "--out", tmp_path / "out").sentence()


def test_object_must_be_one_of_the_model_s(cli, run, two_objects, tmp_path) -> None:
    model = run(data__root=str(two_objects), clients=2).out / "model.safetensors"
    words = ("predict", model, two_objects / "bracket/test/good", "--out", tmp_path / "out")
    assert "holds several banks: name one of bracket, connector" in cli(*words).sentence()
    assert "has no bank 'valve': name one of" in cli(*words, "--object", "valve").sentence()
    assert cli(*words, "--object", "bracket").code == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kind", "imagenet"], "unknown data.kind 'imagenet': choose autovi, folder"),
        (["--objects", "valve", "--kind", "autovi"], "has no object valve: choose from bracket"),
        (["--kind", "autovi", "--data", "/absent"], "data root /absent is not a folder"),
    ],
)
def test_test_set_that_cannot_be_used_is_named(cli, clean, parts, words, sentence: str) -> None:
    model = clean.out / "model.safetensors"
    assert sentence in cli("evaluate", model, "--data", parts, *words).sentence()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_help(cli, command: str) -> None:
    ended = cli(command, "--help")
    assert ended.code == 0
    assert "--out" in ended.out
    options = [line for line in ended.out.splitlines() if re.search(r"^\W*(\*\s+)?--", line)]
    assert len(options) >= 4
    for line in options:
        words = re.sub(r"--\S+|<?[A-Z=]{3,}>?|[│*\[\]]", "", line)
        assert len(words.split()) >= 2, line


def test_help_of_positional_arguments_shows_in_80_columns(cli, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = " ".join(cli("predict", "--help").out.split())
    assert "a model.safetensors file" in words
    assert "image files or folders" in words


def test_no_command_shows_what_there_is(cli) -> None:
    ended = cli()
    for command in COMMANDS:
        assert command in ended.out + ended.err


def test_unknown_command_or_option_is_a_usage_error(cli) -> None:
    for words in (("train",), ("simulate", "--sed", "3"), ("predict",)):
        ended = cli(*words)
        assert ended.code == 2
        assert "Usage" in ended.out + ended.err
        assert "Traceback" not in ended.out + ended.err
