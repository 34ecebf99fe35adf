"""Several rounds, budgets, codings, and images that come later."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fl.wire.messages import ALLOWANCE, BANKS, pack_prospect, unpack_allowance, unpack_prospect
from flwr.app import Context, Message

from fl.client_app import app as client_app
from fl.server.federation import RoundFailed
from fl.wire.arrays import unpack_banks
from src.data import write_synthetic
from src.data.partition import Partition

LEAN = {"merge__oversample": 1.0, "merge__budget": "radius"}


def rows(done) -> list[int]:
    return [client["sent"] for client in done.metrics["local"]["clients"]]


def stages(done) -> list[tuple[int, str]]:
    return [(s["round"], s["stage"]) for s in done.metrics["traffic"]["stages"]]


@pytest.mark.parametrize("budget", ["proportional", "radius"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_rows_sent_in_all_rounds_are_the_budget(run, clean, budget: str, rounds: int) -> None:
    done = run(**{**LEAN, "merge__budget": budget}, num_server_rounds=rounds)
    size = clean.metrics["bank"]["size"]
    assert done.metrics["bank"]["size"] == size
    assert sum(rows(done)) == pytest.approx(size, abs=rounds)  # rounded in each


def test_exchanges_of_a_run_in_their_order(run) -> None:
    asks = [(1, "curves"), (1, "banks"), (2, "curves"), (2, "banks"), (2, "evaluate")]
    assert stages(run(**LEAN, num_server_rounds=2)) == asks
    assert stages(run()) == [(1, "banks"), (1, "evaluate")]


def test_radius_budget_promises_a_smaller_radius_than_a_proportional_one_of_as_many_rows(
    run,
) -> None:
    skewed = {"partition__kind": "quantity", "partition__alpha": 0.3, "clients": 2}
    by = {
        budget: run(**{**LEAN, **skewed, "merge__budget": budget}).metrics["bank"]["radius_bound"]
        for budget in ("proportional", "radius")
    }
    assert by["radius"] < by["proportional"]


def test_more_rounds_cover_better_with_as_many_rows(run) -> None:
    banks = [run(**LEAN, num_server_rounds=n).metrics["bank"] for n in (1, 2, 4, 8)]
    radii = [bank["radius"] for bank in banks]
    assert radii[0] >= radii[1] > radii[2] > radii[3]
    bounds = [bank["radius_bound"] for bank in banks]  # where radii tie, these do not
    assert bounds[0] > bounds[1] > bounds[2] > bounds[3]


EXACT = {"merge__protocol": "exact", "num_server_rounds": 30, "merge__oversample": 3.0}


@pytest.fixture(scope="module")
def centralized_bank(run) -> np.ndarray:
    """What one client that holds all images selects."""
    return run(clients=1, merge__oversample=1.0).model.banks["bracket"]


def is_first_of(bank: np.ndarray, whole: np.ndarray) -> None:
    """The clients' shares are rounded one by one, so their sum may be a row more or less."""
    assert abs(len(bank) - len(whole)) <= 1
    least = min(len(bank), len(whole))
    np.testing.assert_array_equal(bank[:least], whole[:least])


@pytest.mark.parametrize("kind", ["iid", "quantity"])
@pytest.mark.parametrize("shuffle", [None, 3])
def test_exact_rounds_make_the_centralized_bank(run, centralized_bank, kind, shuffle) -> None:
    done = run(**EXACT, partition__kind=kind, shuffle=shuffle)
    is_first_of(done.model.banks["bracket"], centralized_bank)
    bank = done.metrics["bank"]
    assert bank["exact"] == bank["size"] == len(done.model.banks["bracket"])
    assert bank["radius"] == pytest.approx(bank["radius_bound"], rel=1e-6)
    assert sum(rows(done)) < 3 * bank["size"]
    assert max(number for number, _ in stages(done)[:-1]) < 30  # it ends when the bank is full


def test_exact_rounds_for_several_objects_at_once(run, two_objects) -> None:
    """Each has a bank, and they are complete at different times."""
    done = run(**EXACT, data__root=str(two_objects))
    alone = run(clients=1, merge__oversample=1.0, data__root=str(two_objects))
    for name, bank in alone.model.banks.items():
        is_first_of(done.model.banks[name], bank)
    assert done.metrics["bank"]["exact"] == done.metrics["bank"]["size"]


def test_exact_rounds_that_do_not_suffice_fill_the_bank_and_say_how_far_it_is_exact(
    run, centralized_bank
) -> None:
    done = run(**{**EXACT, "num_server_rounds": 4})
    bank = done.metrics["bank"]
    assert 1 < bank["exact"] < bank["size"]
    assert abs(bank["size"] - len(centralized_bank)) <= 1
    exact = done.model.banks["bracket"][: bank["exact"]]
    np.testing.assert_array_equal(exact, centralized_bank[: bank["exact"]])
    assert bank["radius"] <= bank["radius_bound"] * (1 + 1e-5)


def test_exact_query_carries_only_rows_that_the_client_has_not(run, misbehave) -> None:
    asked: list[Message] = []
    app = misbehave({}, {}, {1: watching(asked)})
    done = run(client_app=app, **EXACT)
    told = [unpack_banks(m.content[BANKS])["bracket"] for m in asked if BANKS in m.content]
    bank = done.model.banks["bracket"]
    assert sum(map(len, told)) < len(bank)
    np.testing.assert_array_equal(np.concatenate(told), bank[: sum(map(len, told))])


def test_exact_client_that_is_started_anew_is_told_all_again_and_costs_nothing(
    run, misbehave, centralized_bank
) -> None:
    calls: list[int] = []

    def starts_anew(message: Message, context: Context) -> Message:
        calls.append(1)
        if len(calls) in (3, 8):
            for name in list(context.state):
                del context.state[name]
        return client_app(message, context)

    done = run(client_app=misbehave({}, {}, {1: starts_anew}), **EXACT)
    is_first_of(done.model.banks["bracket"], centralized_bank)
    assert done.metrics["refused"] == []
    assert done.metrics["bank"]["radius"] <= done.metrics["bank"]["radius_bound"] * (1 + 1e-5)


@pytest.mark.parametrize("protocol", ["exact", "coreset"])
def test_rows_that_were_lost_on_their_way_are_offered_again(
    run, misbehave, centralized_bank, protocol: str
) -> None:
    calls: list[int] = []

    def loses(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the cable is out")
        return reply

    rounds = EXACT if protocol == "exact" else {**LEAN, "num_server_rounds": 4}
    done = run(client_app=misbehave({1: loses}), **rounds, min_clients=2)
    if protocol == "exact":
        is_first_of(done.model.banks["bracket"], centralized_bank)
        assert done.metrics["bank"]["exact"] == 1  # true of all rows here, and not known to be
    assert done.metrics["bank"]["radius"] <= done.metrics["bank"]["radius_bound"] * (1 + 1e-5)


def test_exact_run_that_broke_off_goes_on_and_is_exact(
    run, misbehave, centralized_bank, tmp_path
) -> None:
    calls: list[int] = []

    def breaks_off(message: Message, context: Context) -> Message:
        calls.append(1)
        if len(calls) == 5:
            raise OSError("the cable is out")
        return client_app(message, context)

    settings = {**EXACT, "out": str(tmp_path)}
    with pytest.raises(RoundFailed):
        run(client_app=misbehave({1: breaks_off}), **settings)
    done = run(**settings, resume=True)
    is_first_of(done.model.banks["bracket"], centralized_bank)
    assert done.metrics["bank"]["exact"] == done.metrics["bank"]["size"]


def test_client_that_claims_a_huge_radius_costs_exactness_and_nothing_else(run, rewrite, misbehave):
    def claim(content) -> None:
        content["about"]["radius"] = [1e30 for _ in content["about"]["radius"]]

    done = run(client_app=misbehave({1: rewrite(claim)}), **{**EXACT, "num_server_rounds": 5})
    bank = done.metrics["bank"]
    assert bank["exact"] == 1
    assert bank["size"] >= 38


def test_exact_client_that_joins_late_leaves_nothing_certain(run, misbehave) -> None:
    calls: list[int] = []

    def late(message: Message, context: Context) -> Message:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the cable is out")
        return client_app(message, context)

    done = run(client_app=misbehave({1: late}), **EXACT, min_clients=2)
    assert done.metrics["refused"] == []
    assert done.metrics["bank"].get("exact", 0) == 0


def test_new_images_are_taken_in_after_exact_rounds(run, plant, tmp_path) -> None:
    before = run(**EXACT, data__root=str(plant))
    bank = before.model.banks["bracket"]
    add_images(plant, tmp_path, 3)
    after = run(**EXACT, data__root=str(plant), out=str(before.out), resume=True)
    grown = after.model.banks["bracket"]
    np.testing.assert_array_equal(grown[: len(bank)], bank)
    assert len(grown) == pytest.approx(len(bank) * 9 / 6, abs=3)
    assert after.metrics["bank"]["radius"] <= after.metrics["bank"]["radius_bound"] * (1 + 1e-5)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_every_training_patch_lies_within_the_bound(run, rounds: int, encoding: str) -> None:
    bank = run(**LEAN, merge__encoding=encoding, num_server_rounds=rounds).metrics["bank"]
    assert 0 < bank["radius"] <= bank["radius_bound"] * (1 + 1e-5)


def test_what_coding_does_to_rows_does_not_make_a_client_know_its_own_images(run) -> None:
    """Thresholds come from images that the bank must not know by heart, however it was sent."""
    changes = {**LEAN, "merge__encoding": "int8"}
    plain, coded = run(**LEAN), run(**changes)
    blind = run(**changes, client_app=forgetting())
    of = {n: r.metrics["threshold"]["bracket"] for n, r in enumerate((plain, coded, blind))}
    assert of[1] == pytest.approx(of[0], rel=0.03)
    assert of[2] < of[1]


def forgetting():
    """A ClientApp that remembers nothing from one message to the next."""
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def fresh(message: Message, context: Context) -> Message:
        for name in list(context.state):
            del context.state[name]
        return client_app(message, context)

    for register in (app.query, app.train, app.evaluate):
        register()(fresh)
    return app


def test_node_started_anew_in_the_first_round_finds_the_same_again(run) -> None:
    kept, forgot = run(**LEAN), run(**LEAN, client_app=forgetting())
    np.testing.assert_array_equal(forgot.model.banks["bracket"], kept.model.banks["bracket"])


def test_node_started_anew_within_a_later_round_sits_it_out_by_name(run, misbehave) -> None:
    forget = forgetting()
    seen: list[int] = []

    def forgetful(message: Message, context: Context) -> Message:
        seen.append(1)
        return (client_app if len(seen) == 1 else forget)(message, context)

    done = run(client_app=misbehave({1: forgetful}), **LEAN, num_server_rounds=2, min_clients=2)
    [left_out] = done.metrics["refused"]
    assert left_out["client"] == 1
    assert "started anew within a round" in left_out["reason"]
    assert done.metrics["bank"]["radius"] > 0  # what it sent in the first round is merged


def test_client_lost_in_a_round_is_asked_again_in_the_next(run, misbehave) -> None:
    calls: list[int] = []

    def late(message: Message, context: Context) -> Message:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the cable is out")
        return client_app(message, context)

    done = run(client_app=misbehave({1: late}), **LEAN, num_server_rounds=2, min_clients=2)
    assert done.metrics["refused"] == []
    assert len(done.metrics["local"]["clients"]) == 3


def test_client_that_sends_more_than_it_may_is_left_out(run, misbehave) -> None:
    def greedy(message: Message, context: Context) -> Message:
        allowance = unpack_allowance(message.content[ALLOWANCE])
        message.content[ALLOWANCE]["rows"] = [count + 1 for count in allowance.values()]
        return client_app(message, context)

    done = run(client_app=misbehave({2: greedy}), **LEAN, min_clients=2)
    [left_out] = done.metrics["refused"]
    assert left_out["client"] == 2
    assert "were asked for" in left_out["reason"]


@pytest.mark.parametrize("what", ["nothing", "rising radii"])
def test_client_whose_survey_is_unsound_is_left_out_and_asked_no_more(
    run, misbehave, what: str
) -> None:
    def unsound(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        prospect = unpack_prospect(reply.content)
        surveys = prospect.surveys
        if what == "nothing":
            surveys.clear()
        else:
            surveys["bracket"].radii[:] = surveys["bracket"].radii[::-1]
        reply.content["about"] = pack_prospect(prospect)["about"]
        return reply

    def never(message: Message, context: Context) -> Message:
        raise AssertionError("it was asked for rows")

    app = misbehave({0: never}, {}, {0: unsound})
    done = run(client_app=app, **LEAN, min_clients=2)
    [left_out] = done.metrics["refused"]
    assert left_out["client"] == 0
    assert "AssertionError" not in left_out["reason"]


def test_too_few_surveys_fail_the_round_in_words(run, misbehave) -> None:
    def broken(message: Message, context: Context) -> Message:
        raise OSError("no disk")

    with pytest.raises(RoundFailed, match="only 2 of 3 clients said what they hold"):
        run(client_app=misbehave({}, {}, {1: broken}), **LEAN)


@pytest.fixture
def plant(parts, tmp_path) -> Path:
    """A data root of its own, to which images can be added."""
    return shutil.copytree(parts, tmp_path / "plant")


def add_images(plant: Path, tmp_path: Path, count: int) -> None:
    size = {"good": 1, "defects": 1, "size": (64, 64), "seed": 9}
    more = write_synthetic(tmp_path / "more", ("bracket",), train=count, **size)
    for i, path in enumerate(sorted(more.rglob("train/good/*.png"))[:count]):
        shutil.copy(path, plant / "bracket" / "train" / "good" / f"9{i:03d}.png")


def watching(asked: list[Message]) -> Callable:
    def watch(message: Message, context: Context) -> Message:
        asked.append(message)
        return client_app(message, context)

    return watch


@pytest.mark.parametrize("rounds", [1, 2])
def test_new_images_are_taken_in_without_starting_over(
    run, misbehave, plant, tmp_path, rounds: int
) -> None:
    settings = {**LEAN, "data__root": str(plant), "num_server_rounds": rounds}
    before = run(**settings)
    owners = Partition.load(before.out / "partition.json").clients
    bank, size = before.model.banks["bracket"], before.metrics["bank"]["size"]
    sent = sum(rows(before))
    add_images(plant, tmp_path, 3)
    asked: list[Message] = []
    app = misbehave(dict.fromkeys(range(3), watching(asked)))
    after = run(client_app=app, out=str(before.out), resume=True, **settings)
    np.testing.assert_array_equal(after.model.banks["bracket"][:size], bank)
    assert after.metrics["bank"]["size"] == pytest.approx(size * 9 / 6, abs=3)
    assert sum(rows(after)) - sent == after.metrics["bank"]["size"] - size
    assert after.metrics["bank"]["radius"] <= after.metrics["bank"]["radius_bound"] * (1 + 1e-5)
    assert after.metrics["dataset"]["train_images"] == 9
    now = Partition.load(before.out / "partition.json").clients
    assert all(set(old.train) <= set(new.train) for old, new in zip(owners, now, strict=True))
    assert len(asked) == 3  # one exchange for rows
    assert stages(after)[-4:-1] == [
        (rounds, "counts"),
        (rounds + 1, "curves"),
        (rounds + 1, "banks"),
    ]
    fresh = run(**settings)
    assert after.metrics["bank"]["radius"] <= fresh.metrics["bank"]["radius"] * 1.25


def test_resuming_a_run_whose_data_are_the_same_sends_no_rows(run, misbehave, plant) -> None:
    settings = {**LEAN, "data__root": str(plant)}
    before = run(**settings)
    asked: list[Message] = []
    app = misbehave(dict.fromkeys(range(3), watching(asked)))
    after = run(client_app=app, out=str(before.out), resume=True, **settings)
    assert asked == []
    assert after.metrics["federated"] == before.metrics["federated"]
    np.testing.assert_array_equal(after.model.banks["bracket"], before.model.banks["bracket"])


def test_images_that_have_gone_are_refused_in_words(run, plant) -> None:
    from src.data.partition import PartitionError

    before = run(data__root=str(plant))
    sorted((plant / "bracket" / "train" / "good").iterdir())[0].unlink()
    with pytest.raises(PartitionError, match="1 images of the partition are missing"):
        run(out=str(before.out), resume=True, data__root=str(plant))


def test_run_that_broke_off_between_rounds_goes_on_with_the_next(run, misbehave, tmp_path) -> None:
    calls: list[int] = []

    def second_fails(message: Message, context: Context) -> Message:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the cable is out")
        return client_app(message, context)

    settings = {**LEAN, "num_server_rounds": 2, "out": str(tmp_path)}
    with pytest.raises(RoundFailed):
        run(client_app=misbehave({1: second_fails}), **settings)
    done = run(**settings, resume=True)
    whole = run(**{**settings, "out": str(tmp_path / "whole")})
    assert (2, "banks") in stages(done)
    np.testing.assert_array_equal(done.model.banks["bracket"], whole.model.banks["bracket"])


def test_later_round_carries_the_bank_so_far_and_the_rows_beyond_it(run, misbehave) -> None:
    asked: list[Message] = []
    app = misbehave({}, {}, dict.fromkeys(range(3), watching(asked)))
    done = run(client_app=app, **LEAN, num_server_rounds=2)
    first, later = asked[:3], asked[3:]
    assert not any(BANKS in message.content for message in first)
    half = unpack_banks(later[0].content[BANKS])["bracket"]
    np.testing.assert_array_equal(done.model.banks["bracket"][: len(half)], half)


def test_centralized_baseline_is_computed_once_for_runs_that_share_a_folder(
    run, tmp_path, monkeypatch
) -> None:
    import fl.results.baseline

    changes = {"evaluate__baseline_dir": str(tmp_path)}
    one = run(**changes)
    monkeypatch.setattr(fl.results.baseline, "centralize", None)  # cannot be called again
    two = run(**changes, clients=2)
    assert two.metrics["centralized"] == one.metrics["centralized"]
    assert two.metrics["heterogeneity"].keys() == one.metrics["heterogeneity"].keys()
    monkeypatch.undo()
    other = run(**changes, seed=1)
    assert other.metrics["centralized"]["radius"] != one.metrics["centralized"]["radius"]
