"""Calibration scores normal images without their own rows; the threshold pools all clients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.federated.calibration import calibrate, pooled_threshold
from src.federated.candidates import encode_bank, find_candidates
from src.federated.scoring import install
from src.federated.types import Bank, Calibration, SentRows
from tests.federated.plain import covering_radius, patches_of


def calibrate_with(model, rows: np.ndarray, images, sent: SentRows | None = None) -> Calibration:
    install(model, Bank(rows))
    return calibrate(model, images, sent)


def test_calibration_scores_an_image_as_if_none_of_its_own_rows_were_in_the_bank(
    model, images
) -> None:
    train = images(4)
    own = [patches_of(model, [image]) for image in train]
    bank = np.concatenate([rows[::7] for rows in own])
    calibration = calibrate_with(model, bank, train)
    expected = []
    for i in range(len(train)):
        model.set_memory_bank(np.concatenate([r[::7] for j, r in enumerate(own) if j != i]))
        [prediction] = model.score([train[i]])
        expected.append(prediction.score)
    assert min(expected) > 0
    assert calibration.images == len(train)
    np.testing.assert_allclose(calibration.quantiles[[0, -1]], [min(expected), max(expected)])
    np.testing.assert_allclose(calibration.quantiles[50], np.median(expected))


def test_calibration_recognises_an_image_s_own_rows_although_int8_changed_them(
    small_model, images
) -> None:
    model, train = small_model(coreset_percentage=0.2), images(4)
    candidates = find_candidates(model, train, 1.0)
    bank = encode_bank(candidates, len(candidates.rows), "int8", 0.0).bank
    calibration = calibrate_with(
        model, bank.features, train, SentRows(candidates.rows, bank.features)
    )
    own_rows = [{row.tobytes() for row in patches_of(model, [image])} for image in train]
    expected = []
    for i, own in enumerate(own_rows):
        others = [j for j, row in enumerate(candidates.rows) if row.tobytes() not in own]
        model.set_memory_bank(bank.features[others])
        [prediction] = model.score([train[i]])
        expected.append(prediction.score)
    extremes = [min(expected), max(expected)]
    np.testing.assert_allclose(calibration.quantiles[[0, -1]], extremes, rtol=1e-5)
    without = calibrate_with(model, bank.features, train)
    assert without.quantiles[0] < calibration.quantiles[0]  # its own rows make a score too low


def test_calibration_measures_the_covering_radius(model, images) -> None:
    train = images(3)
    bank = patches_of(model, images(2, seed=1))[::5]
    measured = calibrate_with(model, bank, train).radius
    assert measured == pytest.approx(covering_radius(patches_of(model, train), bank), rel=1e-5)


def test_an_image_whose_rows_are_the_whole_bank_has_no_score_and_does_not_count(
    model, images
) -> None:
    [only] = images(1)
    unscored = calibrate_with(model, patches_of(model, [only]), [only])
    assert unscored.images == 0
    with pytest.raises(ValueError, match="scores of normal images"):
        pooled_threshold({0: unscored}, 0.01)
    scored = Calibration(np.arange(101.0), 5, 1.0)
    both = {0: unscored, 1: scored}
    assert pooled_threshold(both, 0.1) == pooled_threshold({1: scored}, 0.1)


# Client 0's image scores are spread evenly over 0 to 100, client 1's over 1000 to 1100. Client 1
# has three times the images, so client 0's quantiles weigh 1/404 each, and 1/4 together; client
# 1's weigh 3/404 each.
@pytest.mark.parametrize(
    ("rate", "threshold"),
    [
        (0.8, 80),  # the first 20 %: 81 × 1/404 = 0.2005, reached at client 0's 81st, 80
        (0.5, 1033),  # 1/4 + 34 × 3/404 = 0.5025, reached at client 1's 34th
        (0.1, 1087),  # 1/4 + 88 × 3/404 = 0.9035, reached at its 88th
        (0.001, 1100),  # 1/4 + 101 × 3/404 = 1, reached at its last
    ],
)
def test_a_client_weighs_in_the_threshold_by_its_images(rate: float, threshold: float) -> None:
    spread = np.arange(101.0)
    calibrations = {0: Calibration(spread, 10, 1.0), 1: Calibration(1000 + spread, 30, 1.0)}
    assert pooled_threshold(calibrations, rate) == threshold
    assert pooled_threshold(dict(reversed(calibrations.items())), rate) == threshold


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_the_false_alarm_rate_is_about_the_share_of_normal_images_above_the_threshold(
    seed, rate
) -> None:
    rng = np.random.default_rng(seed)
    scores = [rng.gamma(4, rng.uniform(1, 3), int(rng.integers(100, 400))) for _ in range(3)]
    calibrations = {
        i: Calibration(np.quantile(s, np.linspace(0, 1, 101)), len(s), 1.0)
        for i, s in enumerate(scores)
    }
    above = (np.concatenate(scores) > pooled_threshold(calibrations, rate)).mean()
    assert above == pytest.approx(rate, abs=0.02)
