"""Rounds of coresets: who sends how many rows, how they travel, and what a lost client costs."""

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl.client_app import app as client_app
from fl.server.federation import RoundFailed
from fl.wire.banks import BANKS, QUOTA, unpack_rows
from fl.wire.envelope import unpack_sender
from fl.wire.surveys import SurveyReply, pack_curves, unpack_curves

LEAN = {"merge__oversample": 1.0, "merge__budget": "radius"}


def rows_sent(done) -> list[int]:
    return [client["sent"] for client in done.metrics["local"]["clients"]]


def stages(done) -> list[tuple[int, str]]:
    return [(s["round"], s["stage"]) for s in done.metrics["traffic"]["stages"]]


def forget(context: Context) -> None:
    """Lose what a client keeps, as a restart does."""
    for name in list(context.state):
        del context.state[name]


def forgetful_app() -> ClientApp:
    """A ClientApp whose nodes restart before each message."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        forget(context)
        return client_app(message, context)

    app.train()(handle)
    app.evaluate()(handle)
    app.query("curves")(handle)
    return app


@pytest.mark.parametrize("budget", ["proportional", "radius"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_rows_sent_in_all_rounds_add_up_to_the_budget(run, clean, budget, rounds: int) -> None:
    done = run(**{**LEAN, "merge__budget": budget}, num_server_rounds=rounds)
    size = clean.metrics["bank"]["size"]
    assert done.metrics["bank"]["size"] == size
    assert sum(rows_sent(done)) == pytest.approx(size, abs=rounds)  # rounded in each


def test_exchanges_come_in_their_order(run) -> None:
    first, second = [(1, "curves"), (1, "train")], [(2, "curves"), (2, "train")]
    assert stages(run(**LEAN, num_server_rounds=2)) == [*first, *second, (2, "evaluate")]
    assert stages(run()) == [(1, "train"), (1, "evaluate")]


def test_a_radius_budget_gives_a_smaller_bound_than_a_proportional_one_of_as_many_rows(
    run,
) -> None:
    skewed = {"partition__kind": "quantity", "partition__alpha": 0.3, "clients": 2}
    bounds = {
        budget: run(**{**LEAN, **skewed, "merge__budget": budget}).metrics["bank"]["radius_bound"]
        for budget in ("proportional", "radius")
    }
    assert bounds["radius"] < bounds["proportional"]


def test_more_rounds_cover_better_with_as_many_rows(run) -> None:
    banks = [run(**LEAN, num_server_rounds=n).metrics["bank"] for n in (1, 2, 4, 8)]
    radii = [bank["radius"] for bank in banks]
    assert radii[0] >= radii[1] > radii[2] > radii[3]
    bounds = [bank["radius_bound"] for bank in banks]  # these differ even if radii are equal
    assert bounds[0] > bounds[1] > bounds[2] > bounds[3]


def test_a_later_round_carries_the_bank_so_far_and_extends_it(run, misbehave) -> None:
    requests: list[Message] = []

    def record(message: Message, context: Context) -> Message:
        requests.append(message)
        return client_app(message, context)

    app = misbehave({}, {}, dict.fromkeys(range(3), record))
    done = run(client_app=app, **LEAN, num_server_rounds=2)
    first, later = requests[:3], requests[3:]
    assert not any(BANKS in message.content for message in first)
    half = unpack_rows(later[0].content)["bracket"]
    np.testing.assert_array_equal(done.model.banks["bracket"][: len(half)], half)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_every_training_patch_lies_within_the_bound(run, rounds: int, encoding: str) -> None:
    done = run(**LEAN, merge__encoding=encoding, num_server_rounds=rounds)
    bank = done.metrics["bank"]
    assert 0 < bank["radius"] <= bank["radius_bound"] * (1 + 1e-5)


def test_a_client_recognises_its_own_rows_in_the_bank_although_int8_changed_them(run) -> None:
    """Else the threshold is too low: it must come from images that the bank does not hold."""
    lossless, int8 = run(**LEAN), run(**LEAN, merge__encoding="int8")
    forgotten = run(**LEAN, merge__encoding="int8", client_app=forgetful_app())
    thresholds = [done.metrics["threshold"]["bracket"] for done in (lossless, int8, forgotten)]
    assert thresholds[1] == pytest.approx(thresholds[0], rel=0.03)
    assert thresholds[2] < thresholds[1]


def test_a_node_that_restarts_in_the_first_round_selects_the_same_rows_again(run) -> None:
    kept, lost = run(**LEAN), run(**LEAN, client_app=forgetful_app())
    np.testing.assert_array_equal(lost.model.banks["bracket"], kept.model.banks["bracket"])


def test_a_node_that_restarts_within_a_later_round_sits_it_out(run, misbehave) -> None:
    calls: list[Message] = []

    def restart(message: Message, context: Context) -> Message:
        calls.append(message)
        if len(calls) > 1:
            forget(context)
        return client_app(message, context)

    done = run(client_app=misbehave({1: restart}), **LEAN, num_server_rounds=2, min_clients=2)
    [refusal] = done.metrics["refused"]
    assert refusal["client"] == 1
    assert "restarted within a round" in refusal["reason"]
    assert done.metrics["bank"]["radius"] > 0  # the rows of its first round are merged


def test_a_client_lost_in_a_round_is_asked_again_in_the_next(run, misbehave, failing) -> None:
    app = misbehave({1: failing(1)})
    done = run(client_app=app, **LEAN, num_server_rounds=2, min_clients=2)
    assert done.metrics["refused"] == []
    assert len(done.metrics["local"]["clients"]) == 3


def test_rows_lost_on_their_way_are_covered_in_later_rounds(run, misbehave, failing) -> None:
    app = misbehave({1: failing(2, after_answering=True)})
    bank = run(client_app=app, **LEAN, num_server_rounds=4, min_clients=2).metrics["bank"]
    assert bank["radius"] <= bank["radius_bound"] * (1 + 1e-5)


def test_a_client_that_sends_more_rows_than_its_quota_is_left_out(run, misbehave) -> None:
    def greedy(message: Message, context: Context) -> Message:
        message.content[QUOTA]["rows"] = [rows + 1 for rows in message.content[QUOTA]["rows"]]
        return client_app(message, context)

    done = run(client_app=misbehave({2: greedy}), **LEAN, min_clients=2)
    [refusal] = done.metrics["refused"]
    assert refusal["client"] == 2
    assert "were asked for" in refusal["reason"]


@pytest.mark.parametrize("kind", ["no curve", "rising radii"])
def test_a_client_with_an_unsound_curve_is_left_out_and_not_asked_for_rows(
    run, misbehave, kind: str
) -> None:
    def unsound(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        curves = dict(unpack_curves(reply.content).curves)
        if kind == "no curve":
            curves.clear()
        else:
            curves["bracket"].radii[:] = curves["bracket"].radii[::-1]
        changed = pack_curves(unpack_sender(reply.content), SurveyReply(curves))
        reply.content["about"] = changed["about"]
        return reply

    def never(message: Message, context: Context) -> Message:
        raise AssertionError("it was asked for rows")

    done = run(client_app=misbehave({0: never}, {}, {0: unsound}), **LEAN, min_clients=2)
    [refusal] = done.metrics["refused"]
    assert refusal["client"] == 0
    assert "AssertionError" not in refusal["reason"]


def test_a_round_with_too_few_curves_fails(run, misbehave, failing) -> None:
    with pytest.raises(RoundFailed, match="only 2 of 3 clients reported what they hold"):
        run(client_app=misbehave({}, {}, {1: failing(1)}), **LEAN)


def test_a_run_interrupted_between_rounds_goes_on_with_the_next(
    run, misbehave, failing, tmp_path
) -> None:
    settings = {**LEAN, "num_server_rounds": 2, "out": str(tmp_path)}
    with pytest.raises(RoundFailed):
        run(client_app=misbehave({1: failing(2)}), **settings)
    done = run(**settings, resume=True)
    whole = run(**{**settings, "out": str(tmp_path / "whole")})
    assert (2, "train") in stages(done)
    np.testing.assert_array_equal(done.model.banks["bracket"], whole.model.banks["bracket"])
