"""Exact rounds make the centralized bank, and say how far they did if clients are lost."""

import numpy as np
import pytest
from flwr.app import Context, Message

from fl.client_app import app as client_app
from fl.server.federation import RoundFailed
from fl.wire.banks import BANKS, unpack_rows

EXACT = {"merge__protocol": "exact", "num_server_rounds": 30, "merge__oversample": 3.0}


def rows_sent(done) -> int:
    return sum(client["sent"] for client in done.metrics["local"]["clients"])


def last_round(done) -> int:
    return max(stage["round"] for stage in done.metrics["traffic"]["stages"][:-1])


@pytest.fixture(scope="module")
def centralized_bank(run) -> np.ndarray:
    """What one client that holds all images selects."""
    return run(clients=1, merge__oversample=1.0).model.banks["bracket"]


def assert_begins_alike(bank: np.ndarray, other: np.ndarray) -> None:
    """Clients round their shares one by one, so their sum may be off by one row."""
    assert abs(len(bank) - len(other)) <= 1
    size = min(len(bank), len(other))
    np.testing.assert_array_equal(bank[:size], other[:size])


@pytest.mark.parametrize("kind", ["iid", "quantity"])
@pytest.mark.parametrize("shuffle", [None, 3])
def test_exact_rounds_make_the_centralized_bank(run, centralized_bank, kind, shuffle) -> None:
    done = run(**EXACT, partition__kind=kind, shuffle=shuffle)
    assert_begins_alike(done.model.banks["bracket"], centralized_bank)
    bank = done.metrics["bank"]
    assert bank["exact"] == bank["size"] == len(done.model.banks["bracket"])
    assert bank["radius"] == pytest.approx(bank["radius_bound"], rel=1e-6)
    assert rows_sent(done) < 3 * bank["size"]
    assert last_round(done) < 30  # it ends as soon as the bank is complete


def test_exact_rounds_serve_several_objects_although_they_end_at_different_times(
    run, two_objects
) -> None:
    done = run(**EXACT, data__root=str(two_objects))
    centralized = run(clients=1, merge__oversample=1.0, data__root=str(two_objects))
    for name, bank in centralized.model.banks.items():
        assert_begins_alike(done.model.banks[name], bank)
    assert done.metrics["bank"]["exact"] == done.metrics["bank"]["size"]


def test_too_few_exact_rounds_fill_the_bank_and_report_how_many_rows_are_exact(
    run, centralized_bank
) -> None:
    done = run(**{**EXACT, "num_server_rounds": 4})
    bank = done.metrics["bank"]
    assert 1 < bank["exact"] < bank["size"]
    assert abs(bank["size"] - len(centralized_bank)) <= 1
    exact = done.model.banks["bracket"][: bank["exact"]]
    np.testing.assert_array_equal(exact, centralized_bank[: bank["exact"]])
    assert bank["radius"] <= bank["radius_bound"] * (1 + 1e-5)


def test_an_exact_query_carries_only_rows_that_the_client_does_not_have(run, misbehave) -> None:
    requests: list[Message] = []

    def record(message: Message, context: Context) -> Message:
        requests.append(message)
        return client_app(message, context)

    done = run(client_app=misbehave({}, {}, {1: record}), **EXACT)
    carried = [unpack_rows(m.content)["bracket"] for m in requests if BANKS in m.content]
    bank, count = done.model.banks["bracket"], sum(map(len, carried))
    assert count < len(bank)
    np.testing.assert_array_equal(np.concatenate(carried), bank[:count])


def test_an_exact_client_that_restarts_gets_the_whole_bank_again_and_costs_nothing(
    run, misbehave, centralized_bank
) -> None:
    calls: list[Message] = []

    def restart(message: Message, context: Context) -> Message:
        calls.append(message)
        if len(calls) in (3, 8):
            for name in list(context.state):
                del context.state[name]
        return client_app(message, context)

    done = run(client_app=misbehave({}, {}, {1: restart}), **EXACT)
    assert_begins_alike(done.model.banks["bracket"], centralized_bank)
    assert done.metrics["refused"] == []
    assert done.metrics["bank"]["radius"] <= done.metrics["bank"]["radius_bound"] * (1 + 1e-5)


def test_rows_lost_on_their_way_are_offered_again_in_an_exact_round(
    run, misbehave, failing, centralized_bank
) -> None:
    app = misbehave({1: failing(2, after_answering=True)})
    done = run(client_app=app, **EXACT, min_clients=2)
    assert_begins_alike(done.model.banks["bracket"], centralized_bank)
    bank = done.metrics["bank"]
    assert bank["exact"] == 1  # all rows are, but the server cannot know
    assert bank["radius"] <= bank["radius_bound"] * (1 + 1e-5)


def test_an_exact_run_that_was_interrupted_goes_on_and_is_exact(
    run, misbehave, failing, centralized_bank, tmp_path
) -> None:
    settings = {**EXACT, "out": str(tmp_path)}
    with pytest.raises(RoundFailed):
        run(client_app=misbehave({1: failing(5)}), **settings)
    done = run(**settings, resume=True)
    assert_begins_alike(done.model.banks["bracket"], centralized_bank)
    assert done.metrics["bank"]["exact"] == done.metrics["bank"]["size"]


def test_a_client_that_claims_a_huge_radius_costs_exactness_and_nothing_else(
    run, rewrite, misbehave
) -> None:
    def claim(content) -> None:
        content["about"]["radius"] = [1e30 for _ in content["about"]["radius"]]

    done = run(client_app=misbehave({1: rewrite(claim)}), **{**EXACT, "num_server_rounds": 5})
    bank = done.metrics["bank"]
    assert bank["exact"] == 1
    assert bank["size"] >= 38


def test_if_an_exact_client_joins_late_no_row_counts_as_exact(run, misbehave, failing) -> None:
    done = run(client_app=misbehave({1: failing(1)}), **EXACT, min_clients=2)
    assert done.metrics["refused"] == []
    assert done.metrics["bank"].get("exact", 0) == 0
