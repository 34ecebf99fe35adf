"""The ledger adds up what was released, refuses what is too much, and says what is promised."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.privacy.accounting import epsilon_for, mu_for
from src.privacy.ledger import (
    Budget,
    BudgetExceeded,
    Ledger,
    Release,
    guarantee,
    read_ledger,
    write_ledger,
)

BUDGET = Budget(epsilon=4, delta=1e-5, records=600)


def release(mu: float, **changes) -> Release:
    fields = {"name": "sums", "round": 1, "what": "a sum", "sensitivity": 2.0, "sigma": 2.0 / mu}
    return Release(**{**fields, **changes})


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_releases_are_taken_as_long_as_all_together_keep_to_the_budget(mus) -> None:
    ledger, spent = Ledger(BUDGET), 0.0
    for mu in mus:
        spent = math.hypot(spent, mu)
        if spent > BUDGET.mu:
            with pytest.raises(BudgetExceeded, match=r"would bring ε to .* the budget is 4"):
                ledger.with_releases([release(mu)])
            return
        ledger = ledger.with_releases([release(mu)])
        assert ledger.epsilon == pytest.approx(epsilon_for(spent, BUDGET.delta))
        assert ledger.epsilon <= BUDGET.epsilon + 1e-6


def test_a_budget_that_was_split_can_be_spent_to_the_last_bit() -> None:
    full = Ledger(BUDGET).with_releases(
        [release(BUDGET.mu * part**0.5) for part in (0.1, 0.2, 0.7)]
    )
    assert full.epsilon == pytest.approx(4)
    with pytest.raises(BudgetExceeded, match="3 earlier releases have spent 4"):
        full.with_releases([release(0.01, name="threshold", round=2)])


def test_images_of_other_banks_are_other_images_and_clients_are_the_same() -> None:
    mu = BUDGET.mu
    both = [release(mu, bank="one"), release(mu, bank="other")]
    assert Ledger(BUDGET).with_releases(both).mu == pytest.approx(mu)
    clients = Budget(4, 1e-5, 600, unit="client")
    with pytest.raises(BudgetExceeded):
        Ledger(clients).with_releases(
            [release(mu, bank=b, unit="client") for b in ("one", "other")]
        )


def test_without_releases_nothing_is_spent() -> None:
    assert Ledger(BUDGET).epsilon == 0
    assert guarantee(Ledger(BUDGET)).startswith("Nothing that depends on private images")


def test_the_guarantee_is_one_sentence() -> None:
    said = guarantee(Ledger(BUDGET).with_releases([release(mu_for(2, 1e-5))]))
    assert said == (
        "Whoever sees all that was released, but not the sums before the server added its noise, "
        "can hardly tell the run from one in which one of 600 training images had been left out: "
        "it is (2, 1e-05)-differentially private for that unit, of a budget of ε = 4."
    )


def test_a_ledger_is_read_as_it_was_written(tmp_path) -> None:
    ledger = Ledger(BUDGET).with_releases([release(0.5), release(0.25, round=2, bank="b")])
    write_ledger(tmp_path / "ledger.json", ledger)
    assert read_ledger(tmp_path / "ledger.json") == ledger
    entry = json.loads((tmp_path / "ledger.json").read_text())["releases"][0]
    assert entry == {
        "name": "sums",
        "round": 1,
        "what": "a sum",
        "sensitivity": 2.0,
        "sigma": 4.0,
        "bank": "shared",
        "unit": "image",
        "adjacency": "null",
        "replayable": False,
        "mu": 0.5,
    }


@pytest.mark.parametrize("content", ["", "[]", '{"budget": null}', '{"budget": 3, "releases": []}'])
def test_a_file_that_is_no_ledger_is_refused_by_name(tmp_path, content: str) -> None:
    (tmp_path / "ledger.json").write_text(content)
    with pytest.raises(ValueError, match=r"ledger\.json is not a valid privacy ledger"):
        read_ledger(tmp_path / "ledger.json")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Budget(0, 1e-5, 600), "privacy.epsilon must be above 0"),
        (lambda: Budget(math.inf, 1e-5, 600), "privacy.epsilon must be above 0 and finite"),
        (lambda: Budget(1, 1 / 600, 600), "with 600 images it must be above 0 and below 0.0017"),
        (lambda: Budget(1, 0, 600), "privacy.delta is 0"),
        (lambda: Budget(1, 1e-5, 0), "protects nobody"),
        (lambda: release(1, sensitivity=0), "cannot be accounted"),
        (lambda: release(1, sensitivity=math.inf), "cannot be accounted"),
        (lambda: release(1, sigma=0.0), "cannot be accounted"),
        (lambda: release(1, sigma=math.nan), "cannot be accounted"),
        (
            lambda: Ledger(BUDGET).with_releases([release(0.1, adjacency="replace")]),
            "image, replace",
        ),
    ],
)
def test_mistakes_are_refused_in_a_sentence(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_few_clients_are_warned_of() -> None:
    assert "there are 5" in Budget(4, 1e-5, 5, unit="client").warning
    assert not Budget(4, 1e-5, 100, unit="client").warning
    assert not BUDGET.warning
