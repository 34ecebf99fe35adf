"""The decoder finds what is linear in vectors, and nothing where there is nothing."""

import math

import numpy as np

from src.privacy.attacks.inversion import Decoder, correlations, paint_patches, patch_pixels


def seen(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [count, 12] that are a linear function of pixels [count, 8], and the pixels."""
    pixels = np.random.default_rng(seed).uniform(0, 1, (count, 8))
    return pixels @ np.random.default_rng(9).normal(size=(8, 12)) + 3, pixels


def test_what_vectors_hold_linearly_is_found() -> None:
    vectors, pixels = seen(50, 1)
    decoded = Decoder.fit(*seen(400, 0), ridge=1e-9).decode(vectors)
    assert np.median(correlations(decoded, pixels)) > 0.999
    np.testing.assert_allclose(decoded, pixels, atol=1e-5)


def test_shuffled_images_tell_the_decoder_nothing() -> None:
    vectors, pixels = seen(400, 0)
    shuffled = np.random.default_rng(2).permutation(pixels)
    others, originals = seen(200, 1)
    decoded = Decoder.fit(vectors, shuffled).decode(others)
    assert abs(np.median(correlations(decoded, originals))) < 0.2


def test_correlations_are_numpys_and_zero_for_flat_patches() -> None:
    _, pixels = seen(30, 1)
    decoded = pixels + seen(30, 2)[1]
    pixels[0] = 0.5
    found = correlations(decoded, pixels)
    assert found[0] == 0
    plain = [np.corrcoef(a, b)[0, 1] for a, b in zip(decoded[1:], pixels[1:], strict=True)]
    np.testing.assert_allclose(found[1:], plain)


def test_vectors_without_any_variance_are_decoded_to_the_mean() -> None:
    vectors, pixels = seen(30, 1)
    decoded = Decoder.fit(np.ones_like(vectors), pixels).decode(vectors)
    np.testing.assert_allclose(decoded, np.tile(pixels.mean(0), (30, 1)))


def test_squares_of_all_patches_make_the_image_again() -> None:
    image = np.random.default_rng(0).random((40, 48))
    squares = patch_pixels(image, (5, 6))
    assert squares.shape == (30, 256)
    whole = paint_patches(image.shape, (5, 6), np.arange(30), squares)
    np.testing.assert_allclose(whole, image)
    one = paint_patches(image.shape, (5, 6), np.array([8]), squares[[8]])
    rows, columns = np.nonzero(np.isfinite(one))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 19, 12, 27)
    assert math.isnan(one[0, 0])
