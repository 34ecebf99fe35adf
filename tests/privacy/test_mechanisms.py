"""With little noise a mechanism finds what is there; with much it keeps to what is public."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from single_bank import ask_clients, run_bank

from src.privacy.clipping import normalize_patches
from src.privacy.mechanisms.denoise import denoise_covariance, noise_edge, shrink
from src.privacy.mechanisms.gaussian import GaussianSettings, dp_gaussian
from src.privacy.noise import seeded_noise
from src.privacy.queries import to_matrix
from src.privacy.runner import Mechanism, PrivacyParams, PrivateBank

DIM = 5
WIDE = GaussianSettings(centre_limit=2, mean_limit=2, square_limit=5)
EXACT = PrivacyParams(1e9)


def run(mechanism: Mechanism, images, params: PrivacyParams, seed: int = 0) -> PrivateBank:
    return run_bank(mechanism, ask_clients(images), params, seeded_noise(seed))


def two_kinds(count: int = 60) -> tuple[list[np.ndarray], np.ndarray]:
    """Images whose patches lie about two of the axes, and those axes' middles as unit vectors."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        axis = rng.integers(2, size=30)
        images.append(normalize_patches(np.eye(DIM)[axis] + rng.normal(0, 0.05, (30, DIM))))
    pooled = np.concatenate(images)
    return images, np.array([pooled[pooled[:, i] > 0.5].mean(0) for i in range(2)])


def test_without_noise_or_clipping_the_gaussian_is_that_of_all_patches() -> None:
    images, _ = two_kinds()
    bank = run(dp_gaussian(DIM, WIDE), images, EXACT)
    pooled = np.concatenate(images)
    np.testing.assert_allclose(bank.origin, pooled.mean(0), atol=1e-7)
    whitened = (pooled - bank.origin) @ bank.basis
    np.testing.assert_allclose(whitened.T @ whitened / len(pooled), np.eye(DIM), atol=1e-5)
    inverse = np.linalg.inv(np.cov(pooled.T, bias=True))
    away = pooled - pooled.mean(0)
    plain = np.einsum("pi,ij,pj->p", away, inverse, away)
    np.testing.assert_allclose((whitened**2).sum(1), plain, rtol=1e-4)


def symmetric_noise(rng: np.random.Generator, dim: int, sigma: float) -> np.ndarray:
    """Noise of deviation sigma on the entries of `to_vector`."""
    return to_matrix(rng.normal(0, sigma, dim * (dim + 1) // 2))


def test_noise_edge_is_where_eigenvalues_of_noise_end() -> None:
    rng = np.random.default_rng(0)
    values = np.linalg.eigvalsh(symmetric_noise(rng, 60, 0.1))
    assert values[-1] == pytest.approx(noise_edge(0.1, 60), rel=0.1)


def test_what_stands_out_of_the_noise_is_found_and_the_rest_is_nearer_the_truth() -> None:
    rng = np.random.default_rng(0)
    dim, sigma = 60, 0.1
    truth = np.concatenate([[20.0, 10.0], np.linspace(2, 0.5, dim - 2)])
    noisy = np.diag(truth) + symmetric_noise(rng, dim, sigma)
    values, vectors, kept = denoise_covariance(noisy, sigma)
    assert kept >= 2
    assert values[:2] == pytest.approx([20, 10], rel=0.05)
    assert np.abs(np.diag(vectors[:2, :2])).min() > 0.99
    assert (np.diff(values[kept:]) <= 1e-9).all()
    best = np.einsum("ik,i,ik->k", vectors, truth, vectors)  # for these eigenvectors
    raw = np.linalg.eigvalsh(noisy)[::-1]
    assert np.abs(values - best).mean() < 0.5 * np.abs(raw - best).mean()
    assert values.sum() == pytest.approx(np.trace(noisy), rel=0.02)


def test_without_noise_a_covariance_stays_as_it_is() -> None:
    truth = np.linspace(3, 1, DIM)
    values, _, kept = denoise_covariance(np.diag(truth), 0.0)
    np.testing.assert_allclose(values, truth)
    assert kept == DIM


def test_eigenvalues_stay_positive_where_noise_is_all_there_is() -> None:
    for seed in range(20):
        noise = symmetric_noise(np.random.default_rng(seed), DIM, 5.0)
        values, _, _ = denoise_covariance(noise - 3 * np.eye(DIM), 5.0)
        assert (values > 0).all()


def test_public_images_give_the_centre_and_what_noise_hides() -> None:
    """Public and private patches of one kind: under much noise the public covariance shows."""
    rng = np.random.default_rng(0)
    scale = np.array([0.3, 0.1, 0.03, 0.01, 0.003])
    images = [normalize_patches(1 + scale * rng.normal(size=(40, DIM))) for _ in range(200)]
    public = normalize_patches(1 + scale * rng.normal(size=(2000, DIM)))
    truth = np.cov(np.concatenate(images).T)
    mechanism = dp_gaussian(DIM, GaussianSettings(), public)
    bank = run(mechanism, images, PrivacyParams(0.05))
    np.testing.assert_allclose(bank.origin, np.concatenate(images).mean(0), atol=0.05)
    found = np.linalg.inv(bank.basis @ bank.basis.T)
    alone = run(dp_gaussian(DIM, GaussianSettings()), images, PrivacyParams(0.05))
    without = np.linalg.inv(alone.basis @ alone.basis.T)

    def angle(one: np.ndarray) -> float:
        return float((one * truth).sum() / np.linalg.norm(one) / np.linalg.norm(truth))

    assert angle(found) > angle(without) + 0.2


@given(st.integers(0, 2**32 - 1))
def test_shrinking_never_turns_or_lengthens_and_leaves_clear_signals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vector = rng.normal(0, 10.0 ** rng.uniform(-3, 3), DIM)
    shrunk = shrink(vector, 10.0 ** rng.uniform(-3, 3))
    ratio = np.linalg.norm(shrunk) / np.linalg.norm(vector)
    assert ratio <= 1
    np.testing.assert_allclose(shrunk, vector * ratio, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(shrink(vector, 0.0), vector)


def test_shrinking_lowers_the_error_of_small_vectors_in_noise() -> None:
    rng = np.random.default_rng(0)
    noisy = 0.1 + rng.normal(0, 1, (500, 30))
    error = ((np.stack([shrink(row, 1.0) for row in noisy]) - 0.1) ** 2).sum(1).mean()
    assert error < 0.2 * ((noisy - 0.1) ** 2).sum(1).mean()
