"""Protocols are found by name; one of a third party is a file that is imported before the run."""

import pytest

import fl.extensions
from fl.config import ConfigError
from fl.server.protocols import Protocol, base, protocol_class, register


@pytest.fixture
def own_protocols(monkeypatch) -> None:
    """Protocols that a test registers are forgotten afterwards."""
    monkeypatch.setattr(base, "_protocols", base.registered())


def test_a_protocol_refuses_settings_before_the_run_starts(own_protocols, run, tmp_path) -> None:
    @register("mine")
    class Mine(Protocol):
        @classmethod
        def problems(cls, settings):
            yield "merge.protocol = mine: it takes one round"

        def run_round(self, federation, state):
            return state

    with pytest.raises(ConfigError, match="mine: it takes one round"):
        run(merge__protocol="mine", out=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_modules_of_the_extensions_folder_are_loaded(
    own_protocols, monkeypatch, tmp_path, settings
) -> None:
    """By server and clients alike, as the how-to's file would be."""
    (tmp_path / "mine.py").write_text(
        "from fl.server.protocols.base import Protocol, register\n\n\n"
        '@register("found")\nclass Found(Protocol):\n'
        "    def run_round(self, federation, state):\n        return state\n"
    )
    monkeypatch.setattr(fl.extensions, "__path__", [str(tmp_path)])
    assert protocol_class(settings(merge__protocol="found")).__name__ == "Found"


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
