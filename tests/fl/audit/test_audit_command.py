"""fedpatchcore audit: what is found of each mechanism, what is refused, and what the page shows."""

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message

from fl.audit.run import verdict
from fl.client_app import app as client_app
from src.data import write_synthetic
from src.privacy.noise import system_noise
from src.privacy.runner import PrivacyParams
from src.reporting.audit.page import rate_curve

KEYS = {
    "claimed_epsilon",
    "delta",
    "epsilon_lower_bound",
    "confidence",
    "membership_auc",
    "tracing_auc",
    "tpr_at_1_percent",
    "tpr_at_0.1_percent",
    "mechanism",
    "guarantee",
    "attacks",
    "audits",
    "inversion",
    "verdict",
}
PATCHES = 64  # of an image


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> Path:
    """24 training images of one object, and 12 normal test images."""
    root = tmp_path_factory.mktemp("pieces") / "bracket"
    return write_synthetic(root, ("bracket",), train=24, good=12, defects=2, size=(64, 64))


@pytest.fixture(scope="session")
def ended(run, pieces):
    """ended(mechanism, **changes): a run of three clients on the pieces."""

    def make(mechanism: str = "none", **changes):
        small = {
            "data__root": str(pieces),
            "privacy__mechanism": mechanism,
            "privacy__epsilon": 4.0,
            "privacy__delta": 0.01,
            "evaluate__baselines": False,
        }
        return run(**(small | changes))

    return make


@pytest.fixture
def audit(cli, monkeypatch):
    """audit(run directory, *words): audit.json, and what was printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(folder: Path, *words: object) -> tuple[dict, str]:
        done = cli("audit", folder, "--runs", 400, *words)
        assert done.code == 0, done.err
        return json.loads((folder / "audit.json").read_text()), done.out

    return call


@pytest.mark.parametrize("mechanism", ["none", "dp_gaussian"])
def test_every_mechanism_is_audited(ended, audit, mechanism: str) -> None:
    done = ended(mechanism)
    found, said = audit(done.out)
    assert set(found) == KEYS
    assert found["mechanism"] == mechanism
    assert found["guarantee"] == done.metrics["privacy"]["guarantee"]
    for key in ("membership_auc", "tpr_at_1_percent", "tpr_at_0.1_percent"):
        assert 0 <= found[key] <= 1
    assert found["epsilon_lower_bound"] >= 0
    assert (found["confidence"], found["delta"]) == (0.95, 0.01)
    inversion = found["inversion"]
    if inversion["rows"] > 1:
        assert -1 <= inversion["median_correlation"] <= 1
        assert -1 <= inversion["shuffled"] <= 1
    private = mechanism.startswith("dp_")
    assert set(found["attacks"]) == {"distance"} | ({"tracing"} if private else set())
    one_run = found["audits"]["one_run"]
    assert 0 <= one_run["right"] <= one_run["guesses"] <= one_run["canaries"] == 24
    assert ("many_run" in found["audits"]) == (mechanism != "none")
    assert all(len(line) <= 80 for line in said.splitlines()[:3])
    assert found["verdict"] in " ".join(said.split())
    if private:
        assert found["claimed_epsilon"] == pytest.approx(4)
        assert 0 < found["epsilon_lower_bound"] < 4
        assert found["audits"]["many_run"]["canary_reach"] > 0.95
        assert "consistent with the claim of ε = 4:" in found["verdict"]


def test_a_raw_bank_gives_its_images_away(ended, audit) -> None:
    found, _ = audit(ended().out)
    assert found["claimed_epsilon"] is None
    assert found["membership_auc"] > 0.95
    assert found["inversion"]["verbatim_patches"] > 100
    assert found["verdict"].startswith("No claim was made; the bank gives away at least ε ≥ ")
    one_run = found["audits"]["one_run"]
    assert one_run["right"] == one_run["guesses"] == 12
    assert found["confidence"] == one_run["confidence"] == 0.95


def test_noise_on_vectors_is_shown_not_to_hide_an_image(ended, cli) -> None:
    out = ended().out
    assert cli("audit", out, "--runs", 2000, "--embedding-noise", 4).code == 0
    assert not (out / "audit.json").exists()  # which is for the bank as the run made it
    found = json.loads((out / "embedding-noise" / "audit.json").read_text())
    assert set(found) == KEYS | {"image_auroc"}
    assert found["mechanism"] == "embedding_noise"
    assert found["guarantee"].startswith("Guarantee: none for an image")
    assert 0 <= found["image_auroc"] <= 1
    assert found["claimed_epsilon"] == 4
    assert found["epsilon_lower_bound"] > 4
    assert "the claim of ε = 4 for each vector is false: ε ≥ " in found["verdict"]
    assert found["audits"]["many_run"]["confidence"] == pytest.approx(0.975)  # of two audits


def test_noise_on_the_vectors_of_a_private_bank_is_refused(ended, cli) -> None:
    done = ended("dp_gaussian")
    assert "is a private run" in cli("audit", done.out, "--embedding-noise", 4).sentence()


def test_noise_for_one_patch_in_the_run_is_caught(ended, audit, monkeypatch) -> None:
    """As if one patch, not one image, were the record: Δ and σ too small by √patches."""
    honest = PrivacyParams.releases

    def planted(self: PrivacyParams, *step):
        less = PATCHES**-0.5
        return [
            type(r)(**{**vars(r), "sensitivity": less * r.sensitivity, "sigma": less * r.sigma})
            for r in honest(self, *step)
        ]

    monkeypatch.setattr(PrivacyParams, "releases", planted)
    done = ended("dp_gaussian", privacy__epsilon=1.0)
    monkeypatch.setattr(PrivacyParams, "releases", honest)
    assert done.metrics["privacy"]["epsilon"] == pytest.approx(1)
    found, _ = audit(done.out)
    assert found["claimed_epsilon"] == pytest.approx(1)
    assert found["epsilon_lower_bound"] > 3
    assert "the claim of ε = 1 is false" in found["verdict"]


def test_noise_that_is_drawn_too_small_is_caught(ended, audit, monkeypatch) -> None:
    done = ended("dp_gaussian", privacy__epsilon=1.0)
    monkeypatch.setattr("fl.audit.attacks.system_noise", lambda count: system_noise(count) / 8)
    assert "is false" in audit(done.out)[0]["verdict"]


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__adjacency": "replace"},
        {"privacy__unit": "client"},
        {"privacy__noise": "seed", "model__scope": "shared"},
    ],
)
def test_other_guarantees_are_audited_too(ended, audit, changes) -> None:
    found, _ = audit(ended("dp_gaussian", **changes).out)
    assert 0 <= found["epsilon_lower_bound"] < 4
    left_out = not {"privacy__unit", "privacy__adjacency"} & set(changes)
    assert ("one_run" in found["audits"]) == left_out


def test_images_of_a_client_that_was_left_out_are_no_members(ended, audit, misbehave) -> None:
    def dying(message: Message, context: Context) -> Message:
        raise OSError("the machine is gone")

    app = misbehave({1: dying}, {1: dying}, {1: dying})
    found, _ = audit(ended(client_app=app, min_clients=2).out)
    assert found["attacks"]["distance"]["members"] == 16
    assert found["membership_auc"] > 0.95


def test_a_run_that_lost_a_client_between_questions_is_refused(ended, cli, misbehave) -> None:
    asked = []

    def dying(message: Message, context: Context) -> Message:
        asked.append("ask" in message.content)
        if sum(asked) > 1:
            raise OSError("the machine is gone")
        return client_app(message, context)

    done = ended("dp_gaussian", client_app=misbehave({}, {1: dying}, {1: dying}), min_clients=2)
    assert "answers are of 16 images of bracket" in cli("audit", done.out).sentence()


def test_several_banks_have_figures_each_and_the_worst_come_first(
    ended, audit, tmp_path_factory
) -> None:
    root = write_synthetic(
        tmp_path_factory.mktemp("two") / "both", train=8, good=10, defects=1, size=(64, 64)
    )
    found, said = audit(ended(data__root=str(root)).out)
    assert set(found) == KEYS | {"banks"}
    banks = found["banks"]
    assert set(banks) == {"bracket", "connector"}
    assert found["membership_auc"] == max(bank["membership_auc"] for bank in banks.values())
    assert banks["bracket"]["audits"]["one_run"]["confidence"] == pytest.approx(0.975)
    assert {"bracket", "connector"} <= set(said.split())


def test_the_attacker_can_bring_images_and_figures_go_elsewhere(ended, cli, pieces, tmp_path):
    done = ended()
    public = pieces / "bracket" / "test"
    place = tmp_path / "elsewhere"
    words = ("--runs", 100, "--public", public, "--out", place, "--seed", 3)
    assert cli("audit", done.out, *words).code == 0
    found = json.loads((place / "audit.json").read_text())
    assert found["inversion"]["learnt_from"] == "public images"
    assert (place / "audit.html").is_file()
    assert not (done.out / "audit.json").exists()
    assert "--public = " in cli("audit", done.out, "--public", tmp_path / "no").sentence()


class Page(HTMLParser):
    """Open elements, and what the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refers: list[str] = []
        self.unnamed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        given = dict(attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.refers += [given[key] for key in ("src", "href") if key in given]
        if tag == "img" and not given.get("alt"):
            self.unnamed.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("mechanism", ["none", "dp_gaussian"])
def test_page_loads_nothing_and_is_whole(ended, audit, mechanism: str) -> None:
    done = ended(mechanism)
    found, _ = audit(done.out)
    text = (done.out / "audit.html").read_text()
    page = Page(text)
    assert page.open == page.unnamed == []
    kinds = Counter(each.partition(";base64,")[0] for each in page.refers)
    pictures = 4 if mechanism == "none" else 2
    assert kinds == {"data:image/png": pictures, "data:image/svg+xml": 2}
    assert "://" not in text
    assert "{{" not in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower().split()
    assert found["verdict"] in text
    assert "What was not tested" in text


def spoilt(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "spoilt"))


def test_what_cannot_be_audited_is_said_in_a_sentence(ended, cli, pieces, tmp_path) -> None:
    assert "is no finished run: it has no config.toml" in cli("audit", tmp_path).sentence()
    root = Path(shutil.copytree(pieces, tmp_path / "data"))
    done = ended("dp_gaussian", data__root=str(root))
    config = (done.out / "config.toml").read_text()
    for name, said in (
        ("metrics.json", "is no finished run: it has no metrics.json"),
        ("private.safetensors", "is no finished run: it has no private.safetensors"),
        ("privacy_ledger.json", "privacy_ledger.json is not there"),
    ):
        folder = spoilt(done.out, tmp_path)
        (folder / name).unlink()
        assert said in cli("audit", folder).sentence()
        shutil.rmtree(folder)
    folder = spoilt(done.out, tmp_path)
    another = ended("dp_gaussian", data__root=str(root))
    shutil.copy(another.out / "private.safetensors", folder)
    assert "do not give the bank bracket here" in cli("audit", folder).sentence()
    (folder / "config.toml").write_text(config.replace('shared" = true', 'shared" = false'))
    assert "so it is of simulations" in cli("audit", folder).sentence()
    (folder / "config.toml").write_text(config)
    (folder / "privacy_ledger.json").write_text("{}")
    assert "not a valid privacy ledger" in cli("audit", folder).sentence()
    (done.out / "file").touch()
    said = cli("audit", done.out, "--out", done.out / "file").sentence()
    assert "is a file; name a folder" in said
    next((root / "bracket" / "train").rglob("*.png")).unlink()
    assert "cannot be audited" in cli("audit", done.out).sentence()
    shutil.rmtree(root)
    assert "cannot be audited" in cli("audit", done.out).sentence()


def test_more_than_fits_the_memory_is_refused(ended, cli, monkeypatch) -> None:
    monkeypatch.setattr("fl.audit.subject.MAX_BYTES", 1_000_000)
    assert "would take 0 GB of memory" in cli("audit", ended("dp_gaussian").out).sentence()


def test_few_normal_test_images_are_refused(clean, cli) -> None:
    said = cli("audit", clean.out).sentence()
    assert "bracket has 3 normal test images, and an audit compares with 10 at least" in said


@pytest.mark.parametrize(
    ("claimed", "mechanism", "said"),
    [
        (None, "none", "No claim was made; the bank gives away at least ε ≥ 2.00"),
        (4.0, "dp_gaussian", "consistent with the claim of ε = 4: it shows ε ≥ 2.00"),
        (1.0, "dp_gaussian", "the claim of ε = 1 is false: ε ≥ 2.00 for an image"),
        (
            1.0,
            "embedding_noise",
            "the claim of ε = 1 for each vector is false: ε ≥ 2.00 for an image, with",
        ),
    ],
)
def test_verdict_sets_the_bound_against_the_claim(claimed, mechanism: str, said: str) -> None:
    figures = {"epsilon_lower_bound": 2.0, "claimed_epsilon": claimed, "confidence": 0.95}
    assert said in verdict(figures | {"mechanism": mechanism})


def test_curve_begins_with_what_is_caught_without_a_false_positive() -> None:
    rates, found = rate_curve(np.array([0, 0, 2, 2]), np.array([1, 3]))
    # half of the members below 1, all below 3
    assert rates[1:].tolist() == [0.5, 1.0, 1.0]
    assert 0 < rates[0] <= 0.001
    assert found.tolist() == [0.5, 1.0, 1.0, 1.0]
