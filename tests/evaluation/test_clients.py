"""Figures of unlike clients, worked by hand."""

import numpy as np
import pytest

from src.evaluation.clients import fairness, feature_shift, jain, size_skew, value_skew


def test_feature_shift_by_hand() -> None:
    # two clients with 0, 2 and 4, 6: mean 3; squares in all 9 + 1 + 1 + 9 = 20 over 4 - 1 free,
    # within the clients 1 + 1 + 1 + 1 = 4 over 4 - 2: 1 - (4 / 2) / (20 / 3) = 0.7
    means = np.array([[0.0], [2.0], [4.0], [6.0]])
    assert feature_shift(means, [0, 0, 1, 1]) == pytest.approx(0.7)
    assert feature_shift(means, [0, 1, 1, 0]) == 0  # each client as spread as all


def test_images_dealt_at_random_have_no_shift_however_many_clients() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(600, 40))
    for clients in (2, 6, 60):
        assert feature_shift(means, rng.permutation(600) % clients) < 0.01


def test_clients_whose_images_are_all_alike_are_as_far_apart_as_can_be() -> None:
    means = np.repeat(np.eye(3), 5, axis=0)
    assert feature_shift(means, np.repeat([0, 1, 2], 5)) == 1
    assert feature_shift(np.ones((4, 2)), [0, 0, 1, 1]) == 0  # nothing varies
    assert feature_shift(np.eye(3), [0, 1, 2]) == 0  # one image each says nothing


def test_value_skew_by_hand() -> None:
    # pooled: a 3/4, b 1/4. (a, a): (1/4 + 1/4) / 2 = 1/4; (a, b): 1/4. Both weigh the same
    assert value_skew([["a", "a"], ["a", "b"]]) == pytest.approx(0.25)
    assert value_skew([["a", "b"], ["b", "a"]]) == 0
    # a a a | b: pooled 3/4, 1/4; distances 1/4 and 3/4, weights 3/4 and 1/4
    assert value_skew([["a"] * 3, ["b"]]) == pytest.approx(0.375)
    assert value_skew([["a", "b"], []]) == 0


def test_jain_and_size_skew_by_hand() -> None:
    assert jain([2, 2, 2]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([1, 3]) == pytest.approx(16 / 20)
    assert size_skew([1, 3]) == pytest.approx(0.2)


def test_fairness_names_the_worst() -> None:
    found = fairness({2: 0.9, 0: 1.0, 1: 0.7})
    assert (found["worst"], found["worst_client"], found["gap"]) == (0.7, 1, pytest.approx(0.3))
    assert found["jain"] == pytest.approx(2.6**2 / (3 * (0.81 + 1 + 0.49)))
    assert [entry["client"] for entry in found["clients"]] == [0, 1, 2]
    assert fairness({}) == {}
