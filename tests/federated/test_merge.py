"""The merged bank is a greedy selection, its certificate holds, and order does not matter."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.federated.merge import aggregate_client_features, join_banks, merge_coresets, merge_exact
from src.federated.types import ClientBank, ClientStats, MergedBank
from src.models.coreset.selection import farthest_first as fast_farthest_first
from tests.federated.plain import distances, farthest_first

DIM = 3


def client_bank(patches: np.ndarray, share: int, sent: int) -> ClientBank:
    """What an honest client sends: `sent` rows, of which `share` are its local bank."""
    selection = fast_farthest_first(patches, sent)
    return ClientBank(
        features=patches[selection.indices],
        radius=float(selection.radii[-1]),
        share_radius=float(selection.radii[share - 1]),
        stats=ClientStats(images=1, patches=len(patches), share=share),
    )


def random_clients(seed: int) -> tuple[list[np.ndarray], dict[int, ClientBank]]:
    """Some clients' patches, each around a centre of its own, and the banks they send."""
    rng = np.random.default_rng(seed)
    patches, banks = [], {}
    for client in range(int(rng.integers(1, 5))):
        centre = rng.normal(0, 5, DIM)
        own = rng.normal(centre, rng.uniform(0.1, 3), (int(rng.integers(2, 30)), DIM))
        patches.append(own.astype(np.float32))
        share = int(rng.integers(1, len(own) + 1))
        banks[client] = client_bank(patches[-1], share, int(rng.integers(share, len(own) + 1)))
    return patches, banks


seeds = st.integers(0, 2**32 - 1)


@given(seeds)
def test_every_patch_of_every_client_lies_within_the_bound(seed: int) -> None:
    patches, banks = random_clients(seed)
    merged = merge_coresets(banks)
    for of_client in patches:
        farthest = distances(of_client, merged.features).max()
        assert farthest <= merged.certificate.radius_bound * (1 + 1e-6)


@given(seeds)
def test_radius_is_the_distance_of_the_farthest_row_that_was_sent(seed: int) -> None:
    _, banks = random_clients(seed)
    merged = merge_coresets(banks)
    sent = np.concatenate([bank.features for bank in banks.values()])
    farthest = distances(sent, merged.features).max()
    assert merged.certificate.radius == pytest.approx(farthest, abs=1e-5)


@given(seeds)
def test_merge_is_greedy_selection_over_all_rows_in_the_order_of_the_clients(seed: int) -> None:
    _, banks = random_clients(seed)
    union = np.concatenate([banks[client].features for client in range(len(banks))])
    budget = sum(bank.stats.share for bank in banks.values())
    merged = merge_coresets(banks, seed=7)
    assert len(merged.features) == budget
    np.testing.assert_array_equal(merged.features, farthest_first(union, budget, 7))


@given(seeds, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(seed: int, random) -> None:
    _, banks = random_clients(seed)
    order = list(banks)
    random.shuffle(order)
    merged, shuffled = merge_coresets(banks), merge_coresets({c: banks[c] for c in order})
    assert merged.features.tobytes() == shuffled.features.tobytes()
    assert merged.certificate == shuffled.certificate


def test_another_seed_starts_elsewhere() -> None:
    _, banks = random_clients(5)
    starts = {merge_coresets(banks, seed=seed).features[0].tobytes() for seed in range(20)}
    assert len(starts) > 1


def test_half_precision_stays_half_precision() -> None:
    _, banks = random_clients(1)
    halves = {c: replace(b, features=b.features.astype(np.float16)) for c, b in banks.items()}
    assert merge_coresets(halves).features.dtype == np.float16


def test_progress_ends_at_the_budget() -> None:
    _, banks = random_clients(2)
    reports: list[tuple[int, int]] = []
    merged = merge_coresets(banks, progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (len(merged.features), len(merged.features))


@given(seeds, st.integers(1, 4))
def test_a_bank_that_grows_in_rounds_is_the_one_selected_at_once(seed, rounds) -> None:
    patches, banks = random_clients(seed)
    total = sum(bank.stats.share for bank in banks.values())
    merged = None
    for i in range(1, rounds + 1):
        grown = merge_coresets(banks, max(1, round(total * i / rounds)), onto=merged)
        if merged is not None:
            first = grown.features[: len(merged.features)]
            np.testing.assert_array_equal(first, merged.features)
        merged = grown
    np.testing.assert_array_equal(merged.features, merge_coresets(banks).features)
    for of_client in patches:
        farthest = distances(of_client, merged.features).max()
        assert farthest <= merged.certificate.radius_bound * (1 + 1e-6)


def test_a_bank_that_cannot_grow_stays_and_keeps_its_radius() -> None:
    _, banks = random_clients(3)
    merged = merge_coresets(banks, size=2)
    again = merge_coresets(banks, size=2, onto=merged)
    np.testing.assert_array_equal(again.features, merged.features)
    assert again.certificate.radius == pytest.approx(merged.certificate.radius, rel=1e-6)


@pytest.mark.parametrize(
    "merge",
    [
        merge_coresets,
        lambda banks: merge_exact(banks, 1, onto=None, reporting_clients=banks, fill=True),
    ],
    ids=["coresets", "exact"],
)
def test_a_merge_of_no_rows_is_refused(merge) -> None:
    stats = ClientStats(images=1, patches=5, share=2)
    empty = ClientBank(np.empty((0, DIM), np.float32), 1.0, 1.5, stats)
    with pytest.raises(ValueError, match="sent no rows"):
        merge({0: empty, 1: empty})


ROUNDS, STEP = 40, 3
START = np.random.default_rng(42).standard_normal(DIM)  # where selection with seed 42 starts


def exact_rounds(patches: list[np.ndarray], size: int, takes_part) -> MergedBank:
    """Exact rounds of clients that send their three farthest patches each.

    takes_part(round, client) says who does in the rounds after the first.
    """
    merged, banks, sent = None, {}, [[] for _ in patches]
    for number in range(ROUNDS):
        clients = [c for c in range(len(patches)) if number == 0 or takes_part(number, c)]
        for c in clients:
            if merged is None:
                new = [int((patches[c] * START).sum(1).argmax())]
                radius = distances(patches[c], patches[c][new]).max()
            else:
                gaps = distances(patches[c], merged.features)
                gaps[sent[c]] = 0
                new = [int(i) for i in np.argsort(-gaps)[:STEP] if gaps[i] > 0]
                sent[c] += new
                gaps[new] = 0
                radius = gaps.max()
            stats = ClientStats(1, len(patches[c]), 1)
            bank = ClientBank(patches[c][new], float(radius), 0.0, stats)
            banks[c] = join_banks(banks.get(c), bank)
        merged = merge_exact(
            banks,
            size if merged else 1,
            onto=merged,
            reporting_clients=clients,
            fill=number == ROUNDS - 1,
        )
    return merged


@given(seeds)
def test_exact_rounds_pick_what_selection_over_all_patches_picks(seed: int) -> None:
    patches, _ = random_clients(seed)
    union = np.concatenate(patches)
    size = max(1, len(union) // 2)
    merged = exact_rounds(patches, size, lambda number, client: True)
    np.testing.assert_array_equal(merged.features, farthest_first(union, size, 42))
    assert merged.certificate.exact_rows == size
    measured = distances(union, merged.features).max()
    assert merged.certificate.radius_bound == pytest.approx(measured, rel=1e-5, abs=1e-5)


@given(seeds)
def test_exact_rounds_that_clients_miss_keep_their_bound_and_count_no_row_too_many(
    seed: int,
) -> None:
    patches, _ = random_clients(seed)
    union = np.concatenate(patches)
    present = np.random.default_rng(seed).random((ROUNDS, len(patches))) < 0.3
    size = max(1, len(union) // 2)
    merged = exact_rounds(patches, size, lambda r, c: present[r, c] or c == 0)
    certificate = merged.certificate
    assert distances(union, merged.features).max() <= certificate.radius_bound * (1 + 1e-6)
    exact = farthest_first(union, size, 42)[: certificate.exact_rows]
    np.testing.assert_array_equal(merged.features[: certificate.exact_rows], exact)


@given(seeds, st.data())
def test_aggregated_features_are_rows_of_the_clients(seed: int, data) -> None:
    patches, _ = random_clients(seed)
    union = np.concatenate(patches)
    size = data.draw(st.integers(1, len(union)))
    selected = aggregate_client_features(patches, size)
    assert selected.shape == (size, DIM)
    assert {row.tobytes() for row in selected} <= {row.tobytes() for row in union}


def test_aggregation_keeps_every_distinct_row_if_no_size_is_given() -> None:
    one, other = np.eye(DIM, dtype=np.float32), np.zeros((2, DIM), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # duplicates are expected, so there is no warning
        rows = aggregate_client_features([one, other, one])
    assert sorted(map(tuple, rows)) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]


@pytest.mark.parametrize(
    ("features", "size", "reason"),
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
def test_features_that_cannot_be_aggregated_are_refused(features, size, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        aggregate_client_features(features, size)
