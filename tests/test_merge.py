"""The merge keeps its promise, does not care who was first, and takes nothing unsound in."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.banks import BankRefused, ClientBank
from src.merge import aggregate_client_features, check_bank, merge_banks
from src.models.coreset import farthest_first

DIM = 3


def client_bank(patches: np.ndarray, share: int, sent: int) -> ClientBank:
    """An honest client's answer: `sent` rows of which it would keep `share`."""
    chosen = farthest_first(patches, sent)
    return ClientBank(
        features=patches[chosen.indices],
        radius=float(chosen.radii[-1]),
        share=share,
        share_radius=float(chosen.radii[share - 1]),
        images=1,
        patches=len(patches),
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
    """Farthest-first in four lines: rows in the order picked."""
    picks = [int(np.random.default_rng(seed).integers(len(union)))]
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
    budget = sum(bank.share for bank in banks.values())
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


SOUND = ClientBank(np.eye(DIM, dtype=np.float32), 1.0, 2, 1.5, images=1, patches=5)


def with_rows(*rows: float | np.ndarray, dtype: str = "float32") -> dict:
    return {"features": np.array(rows, dtype)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sound_bank_passes(dtype: str) -> None:
    check_bank(replace(SOUND, features=SOUND.features.astype(dtype)), DIM)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_rows(1, 2, 3), "its bank has shape (3,), not [rows, 3]"),
        ({"features": np.empty((0, DIM), np.float32)}, "its bank has shape (0, 3)"),
        ({"features": np.eye(4, dtype=np.float32)}, "its bank has 4 dimensions, not 3"),
        ({"features": np.eye(DIM)}, "its bank holds float64, not float16 or float32"),
        ({"features": np.eye(DIM, dtype=np.int8)}, "its bank holds int8"),
        (with_rows([1, 2, 3], [1, np.nan, 3], [np.inf, 2, 3]), "2 of its 3 rows hold NaN"),
        ({"share": 0}, "its counts do not agree: share 0, rows 3, patches 5"),
        ({"share": 4}, "its counts do not agree: share 4, rows 3, patches 5"),
        ({"patches": 2}, "its counts do not agree: share 2, rows 3, patches 2"),
        ({"radius": np.nan}, "its covering radius is nan"),
        ({"radius": np.inf}, "its covering radius is inf"),
        ({"radius": -0.5}, "its covering radius is -0.5"),
        ({"share_radius": np.nan}, "its share's covering radius is nan"),
        ({"images": 0}, "its counts do not agree: 0 images"),
    ],
)
def test_bank_that_is_not_what_a_client_should_send_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(BankRefused, match=re.escape(sentence)):
        check_bank(replace(SOUND, **change), DIM)


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
