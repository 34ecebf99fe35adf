"""The merge keeps its promise, does not care who was first, and takes nothing unsound in."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.federated.merge import (
    MergedBank,
    aggregate_client_features,
    check_bank,
    check_survey,
    join_banks,
    merge_banks,
)
from src.federated.types import BankRefused, ClientBank, Holding, Survey
from src.models.coreset.selection import farthest_first

DIM = 3


def client_bank(patches: np.ndarray, share: int, sent: int) -> ClientBank:
    """An honest client's answer: `sent` rows of which it would keep `share`."""
    chosen = farthest_first(patches, sent)
    return ClientBank(
        features=patches[chosen.indices],
        radius=float(chosen.radii[-1]),
        share_radius=float(chosen.radii[share - 1]),
        holding=Holding(images=1, patches=len(patches), share=share),
    )


def drawn_clients(seed: int) -> tuple[list[np.ndarray], dict[int, ClientBank]]:
    """Some clients' patches, each about a place of its own, and the banks they send."""
    rng = np.random.default_rng(seed)
    patches, banks = [], {}
    for client in range(int(rng.integers(1, 5))):
        centre = rng.normal(0, 5, DIM)
        mine = rng.normal(centre, rng.uniform(0.1, 3), (int(rng.integers(2, 30)), DIM))
        patches.append(mine.astype(np.float32))
        share = int(rng.integers(1, len(mine) + 1))
        banks[client] = client_bank(patches[-1], share, int(rng.integers(share, len(mine) + 1)))
    return patches, banks


def distances(rows: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Of each row to the bank, by differences, in float64."""
    return np.array([np.linalg.norm(bank.astype(float) - row, axis=1).min() for row in rows])


def plain_selection(union: np.ndarray, budget: int, seed: int) -> np.ndarray:
    """Farthest-first in a few lines: rows in the order picked."""
    along = np.random.default_rng(seed).standard_normal(union.shape[1])
    picks = [int((union.astype(float) * along).sum(1).argmax())]
    while len(picks) < budget:
        picks.append(int(distances(union, union[picks]).argmax()))
    return union[picks]


seeds = st.integers(0, 2**32 - 1)


@given(seeds)
def test_every_patch_of_every_client_lies_within_the_bound(seed: int) -> None:
    patches, banks = drawn_clients(seed)
    merged = merge_banks(banks)
    for mine in patches:
        assert distances(mine, merged.features).max() <= merged.radius_bound * (1 + 1e-6)


def exact_rounds(patches: list[np.ndarray], size: int, present) -> MergedBank:
    """Clients that send their three farthest patches a round; present(round, client): who does."""
    merged, banks, sent = None, {}, [[] for _ in patches]
    for number in range(40):
        told = [c for c in range(len(patches)) if number == 0 or present(number, c)]
        for c in told:
            if merged is None:
                new = [int((patches[c] * ALONG).sum(1).argmax())]
                radius = distances(patches[c], patches[c][new]).max()
            else:
                gaps = distances(patches[c], merged.features)
                gaps[sent[c]] = 0
                new = [int(i) for i in np.argsort(-gaps)[:3] if gaps[i] > 0]
                sent[c] += new
                gaps[new] = 0
                radius = gaps.max()
            bank = ClientBank(patches[c][new], float(radius), 0.0, Holding(1, len(patches[c]), 1))
            banks[c] = join_banks(banks.get(c), bank)
        size_now = size if merged else 1
        merged = merge_banks(banks, size=size_now, before=merged, told=told, fill=number == 39)
    return merged


ALONG = np.random.default_rng(42).standard_normal(DIM)


@given(seeds)
def test_exact_rounds_pick_what_selection_over_all_patches_picks(seed: int) -> None:
    patches, _ = drawn_clients(seed)
    union = np.concatenate(patches)
    size = max(1, len(union) // 2)
    merged = exact_rounds(patches, size, lambda number, client: True)
    np.testing.assert_array_equal(merged.features, plain_selection(union, size, 42))
    assert merged.exact == size
    measured = distances(union, merged.features).max()
    assert merged.radius_bound == pytest.approx(measured, rel=1e-5, abs=1e-5)


@given(seeds)
def test_exact_rounds_that_clients_miss_still_keep_their_bound(seed: int) -> None:
    patches, _ = drawn_clients(seed)
    union = np.concatenate(patches)
    there = np.random.default_rng(seed).random((40, len(patches))) < 0.3
    size = max(1, len(union) // 2)
    merged = exact_rounds(patches, size, lambda r, c: there[r, c] or c == 0)
    assert distances(union, merged.features).max() <= merged.radius_bound * (1 + 1e-6)
    sure = plain_selection(union, size, 42)[: merged.exact]  # no row is called exact that is not
    np.testing.assert_array_equal(merged.features[: merged.exact], sure)


@given(seeds)
def test_radius_is_the_distance_of_the_farthest_row_that_was_sent(seed: int) -> None:
    _, banks = drawn_clients(seed)
    merged = merge_banks(banks)
    sent = np.concatenate([bank.features for bank in banks.values()])
    assert merged.radius == pytest.approx(distances(sent, merged.features).max(), abs=1e-5)


@given(seeds)
def test_merge_is_the_plain_selection_over_all_rows_by_client_number(seed: int) -> None:
    _, banks = drawn_clients(seed)
    union = np.concatenate([banks[client].features for client in range(len(banks))])
    budget = sum(bank.holding.share for bank in banks.values())
    merged = merge_banks(banks, seed=7)
    assert len(merged.features) == budget
    np.testing.assert_array_equal(merged.features, plain_selection(union, budget, 7))


@given(seeds, st.randoms(use_true_random=False))
def test_order_in_which_clients_answered_does_not_matter(seed: int, random) -> None:
    _, banks = drawn_clients(seed)
    order = list(banks)
    random.shuffle(order)
    merged, shuffled = merge_banks(banks), merge_banks({client: banks[client] for client in order})
    assert merged.features.tobytes() == shuffled.features.tobytes()
    assert merged.radius_bound == shuffled.radius_bound


def test_another_seed_starts_elsewhere() -> None:
    _, banks = drawn_clients(5)
    starts = {merge_banks(banks, seed=seed).features[0].tobytes() for seed in range(20)}
    assert len(starts) > 1


def test_half_precision_stays_half_precision() -> None:
    _, banks = drawn_clients(1)
    halves = {c: replace(b, features=b.features.astype(np.float16)) for c, b in banks.items()}
    assert merge_banks(halves).features.dtype == np.float16


def test_progress_ends_at_the_budget() -> None:
    _, banks = drawn_clients(2)
    seen: list[tuple[int, int]] = []
    merged = merge_banks(banks, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(merged.features), len(merged.features))


HELD = Holding(images=1, patches=5, share=2)
SOUND = ClientBank(np.eye(DIM, dtype=np.float32), 1.0, 1.5, HELD)


def with_rows(*rows: float | np.ndarray, dtype: str = "float32") -> dict:
    return {"features": np.array(rows, dtype)}


def holding(**changes: int) -> dict:
    return {"holding": replace(HELD, **changes)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sound_bank_passes(dtype: str) -> None:
    check_bank(replace(SOUND, features=SOUND.features.astype(dtype)), DIM)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_rows(1, 2, 3), "its bank has shape (3,), not [rows, 3]"),
        ({"features": np.eye(4, dtype=np.float32)}, "its bank has 4 dimensions, not 3"),
        ({"features": np.eye(DIM)}, "its bank holds float64, not float16 or float32"),
        ({"features": np.eye(DIM, dtype=np.int8)}, "its bank holds int8"),
        (with_rows([1, 2, 3], [1, np.nan, 3], [np.inf, 2, 3]), "2 of its 3 rows hold NaN"),
        (holding(share=0), "its counts do not agree: 1 images, share 0, patches 5"),
        (holding(share=6), "its counts do not agree: 1 images, share 6, patches 5"),
        (holding(patches=2), "its counts do not agree: rows 3, patches 2"),
        ({"radius": np.nan}, "its covering radius is nan"),
        ({"radius": np.inf}, "its covering radius is inf"),
        ({"radius": -0.5}, "its covering radius is -0.5"),
        ({"share_radius": np.nan}, "its share's covering radius is nan"),
        (holding(images=0), "its counts do not agree: 0 images"),
    ],
)
def test_bank_that_is_not_what_a_client_should_send_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(BankRefused, match=re.escape(sentence)):
        check_bank(replace(SOUND, **change), DIM)


def test_client_that_has_nothing_to_add_sends_no_row() -> None:
    check_bank(replace(SOUND, features=np.empty((0, DIM), np.float32)), DIM)


CURVE = Survey(HELD, np.array([0, 1, 3, 5]), np.array([4.0, 3.0, 3.0, 0.0]))


def test_sound_survey_passes_with_a_curve_and_without() -> None:
    check_survey(CURVE)
    check_survey(Survey(HELD, CURVE.counts[:0], CURVE.radii[:0]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (holding(share=6), "its counts do not agree"),
        ({"counts": np.array([0, 1, 3])}, "has 3 counts and 4 radii"),
        ({"counts": np.array([0, 1, 1, 5])}, "do not rise"),
        ({"counts": np.array([2, 3, 4, 5])}, "do not rise from 0 or 1"),
        ({"counts": np.array([0, 1, 3, 6])}, "goes to 6 rows of 5 patches"),
        ({"radii": np.array([4.0, 3.0, 3.1, 0.0])}, "not finite and falling"),
        ({"radii": np.array([np.inf, 3.0, 3.0, 0.0])}, "not finite and falling"),
        ({"radii": np.array([4.0, 3.0, 3.0, -1.0])}, "not finite and falling"),
    ],
)
def test_survey_that_is_not_what_a_client_should_send_is_refused(change, sentence: str) -> None:
    with pytest.raises(BankRefused, match=re.escape(sentence)):
        check_survey(replace(CURVE, **change))


@given(seeds, st.integers(1, 4))
def test_bank_that_grows_begins_with_what_it_was_and_goes_on_greedily(seed, rounds) -> None:
    patches, banks = drawn_clients(seed)
    total = sum(bank.holding.share for bank in banks.values())
    merged = None
    for i in range(1, rounds + 1):
        size = max(1, round(total * i / rounds))
        grown = merge_banks(banks, size=size, before=merged)
        if merged is not None:
            kept = grown.features[: len(merged.features)]
            np.testing.assert_array_equal(kept, merged.features)
        merged = grown
    # of the same rows, to grow in steps is to select at once
    np.testing.assert_array_equal(merged.features, merge_banks(banks).features)
    for mine in patches:
        assert distances(mine, merged.features).max() <= merged.radius_bound * (1 + 1e-6)


def test_round_that_has_no_room_keeps_the_bank_and_says_what_it_covers() -> None:
    _, banks = drawn_clients(3)
    merged = merge_banks(banks, size=2)
    again = merge_banks(banks, size=2, before=merged)
    np.testing.assert_array_equal(again.features, merged.features)
    assert again.radius == pytest.approx(merged.radius, rel=1e-6)


def test_merge_of_nothing_is_refused() -> None:
    nothing = replace(SOUND, features=SOUND.features[:0])
    with pytest.raises(ValueError, match="sent no rows"):
        merge_banks({0: nothing, 1: nothing})


@given(seeds, st.data())
def test_aggregated_features_are_rows_of_the_clients(seed: int, data) -> None:
    patches, _ = drawn_clients(seed)
    union = np.concatenate(patches)
    size = data.draw(st.integers(1, len(union)))
    chosen = aggregate_client_features(patches, size)
    assert chosen.shape == (size, DIM)
    assert {row.tobytes() for row in chosen} <= {row.tobytes() for row in union}


def test_aggregation_keeps_every_distinct_row_when_no_size_is_given() -> None:
    one, other = np.eye(DIM, dtype=np.float32), np.zeros((2, DIM), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # all is what was asked for: nothing to warn of
        kept = aggregate_client_features([one, other, one])
    assert sorted(map(tuple, kept)) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]


@pytest.mark.parametrize(
    ("features", "size", "sentence"),
    [
        ([], None, "found none"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], None, "found [3, 4]"),
        ([np.zeros(3), np.zeros(3)], None, "[n, D]"),
        ([np.float32(3)], None, "[n, D]"),
        ([np.eye(3), np.eye(3)], 7, "7"),
        ([np.eye(3)], 0, "0"),
        ([np.full((2, 3), np.nan)], 1, "NaN"),
    ],
)
def test_features_that_cannot_be_aggregated_are_refused(features, size, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        aggregate_client_features(features, size)
