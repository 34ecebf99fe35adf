"""The decoder finds what is linear in vectors, and nothing where there is nothing."""

import numpy as np
import pytest

from src.privacy.attacks.inversion import invert


def seen(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [count, 12] that are a linear function of pixels [count, 8], and the pixels."""
    pixels = np.random.default_rng(seed).uniform(0, 1, (count, 8))
    return pixels @ np.random.default_rng(9).normal(size=(8, 12)) + 3, pixels


def test_what_vectors_hold_linearly_is_found() -> None:
    found = invert(*seen(400, 0), *seen(50, 1), ridge=1e-9)
    assert found.median > 0.999
    np.testing.assert_allclose(found.pixels, seen(50, 1)[1], atol=1e-5)


def test_shuffled_images_tell_the_decoder_nothing() -> None:
    vectors, pixels = seen(400, 0)
    shuffled = np.random.default_rng(2).permutation(pixels)
    assert abs(invert(vectors, shuffled, *seen(200, 1)).median) < 0.2


def test_correlations_are_numpys_and_zero_for_flat_patches() -> None:
    vectors, pixels = seen(30, 1)
    pixels[0] = 0.5
    found = invert(*seen(400, 0), vectors, pixels)
    assert found.correlations[0] == 0
    plain = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.pixels[1:], pixels[1:], strict=True)]
    np.testing.assert_allclose(found.correlations[1:], plain)


def test_vectors_without_any_variance_are_decoded_to_the_mean() -> None:
    vectors, pixels = seen(30, 1)
    found = invert(np.ones_like(vectors), pixels, vectors, pixels)
    np.testing.assert_allclose(found.pixels, np.tile(pixels.mean(0), (30, 1)))


def test_counts_that_do_not_agree_are_refused() -> None:
    vectors, pixels = seen(30, 1)
    for change in ((vectors[:5], pixels), (vectors[:, :5], pixels), (vectors[:0], pixels[:0])):
        with pytest.raises(ValueError, match="must agree"):
            invert(vectors, pixels, *change)
