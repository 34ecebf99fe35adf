"""Protocols are found by name; one of a third party is a file that is imported before the run."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl.config import ConfigError
from fl.server.protocols import Protocol, base, protocol_class, register

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "kmeans_protocol.py"


@pytest.fixture
def own_protocols(monkeypatch) -> None:
    """Protocols that a test registers are forgotten afterwards."""
    monkeypatch.setattr(base, "_protocols", base.registered())


@pytest.fixture
def kmeans(own_protocols) -> Iterator[type[Protocol]]:
    """The example's protocol, loaded by its path."""
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.KMeansProtocol


def test_a_third_party_s_protocol_is_one_file(kmeans, run, clean) -> None:
    done = run(merge__protocol="k-means")
    bank = done.model.banks["bracket"]
    metrics = done.metrics
    assert len(bank) == clean.metrics["bank"]["size"] == metrics["bank"]["size"]
    assert 0 <= metrics["federated"]["image_auroc"] <= 1
    assert "radius_bound" not in metrics["bank"]
    assert metrics["bank"]["radius"] > 0  # as the clients measured it
    assert [stage["stage"] for stage in metrics["traffic"]["stages"]] == ["train", "evaluate"]
    assert not np.array_equal(bank, clean.model.banks["bracket"])


def test_a_third_party_s_protocol_makes_the_same_bank_again(kmeans, run) -> None:
    banks = [run(merge__protocol="k-means", shuffle=n).model.banks["bracket"] for n in (1, 2)]
    np.testing.assert_array_equal(*banks)


def test_a_protocol_refuses_settings_before_the_run_starts(kmeans, run, tmp_path) -> None:
    with pytest.raises(ConfigError, match="k-means: it takes one round"):
        run(merge__protocol="k-means", num_server_rounds=2, out=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_protocol_is_refused_with_those_there_are(run, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"fedavg: choose one of coreset, exact, .*private"):
        run(merge__protocol="fedavg", out=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_private_protocol_comes_with_a_mechanism_and_not_by_its_name(settings) -> None:
    with pytest.raises(ConfigError, match="private: set privacy.mechanism instead"):
        protocol_class(settings(merge__protocol="private"))


def test_a_registered_protocol_is_found_by_its_name(own_protocols, settings) -> None:
    @register("mine")
    class Mine(Protocol):
        def run_round(self, federation, state):
            return state

    assert protocol_class(settings(merge__protocol="mine")) is Mine


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_server_rounds": 1}, "it takes rounds; set num-server-rounds"),
        ({"num_server_rounds": 9, "merge__encoding": "int8"}, "rows must arrive unchanged"),
    ],
)
def test_the_exact_protocol_needs_several_rounds_and_lossless_rows(
    settings, changes, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        protocol_class(settings(merge__protocol="exact", **changes))
