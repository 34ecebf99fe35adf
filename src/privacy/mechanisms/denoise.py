"""Estimates from vectors and matrices that carry Gaussian noise of known size."""

import numpy as np

FLOOR = 0.3  # smallest eigenvalue, as a part of the mean eigenvalue below the noise edge


def shrink(vector: np.ndarray, sigma: float) -> np.ndarray:
    """A vector [D] with noise σ on every entry, shrunk (James and Stein's estimator)."""
    noise = max(0, len(vector) - 2) * (sigma * sigma)
    squared = max(float((vector * vector).sum()), np.finfo(float).tiny)
    return vector * max(0.0, 1 - noise / squared)


def noise_edge(sigma: float, dim: int) -> float:
    """Largest eigenvalue of noise alone, the edge of the semicircle: √2 σ √D.

    Args:
        sigma: standard deviation of the noise on the entries of `queries.to_vector`.
        dim: D.
    """
    return float(np.sqrt(2 * dim) * sigma)


def denoise_covariance(noisy: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Falling eigenvalues [D] and eigenvectors [D, D] of a covariance that carries noise.

    Eigenvectors stay; eigenvalues w_k become w_k − 2 v Re G(w_k), with v = σ² D / 2 and
    G(z) = mean 1 / (z − w_j) a little off the real axis. Among estimates that keep the
    eigenvectors, this is the closest to the truth for large D (Bun, Allez, Bouchaud and Potters,
    2016, equation 44).

    Args:
        noisy: [D, D], symmetric.
        sigma: standard deviation of the noise on the entries of `queries.to_vector`.

    Returns:
        positive eigenvalues, eigenvectors in columns, and how many of them stand above the noise.
    """
    raw, vectors = np.linalg.eigh((noisy + noisy.T) / 2)
    raw, vectors = raw[::-1], vectors[:, ::-1]
    dim = len(raw)
    kept = int((raw > noise_edge(sigma, dim)).sum())
    tail = raw[kept:].mean() if kept < dim else raw[-1]
    values = raw
    if sigma > 0:
        variance = sigma * sigma * dim / 2
        offset = 2j * np.sqrt(variance / dim)
        green = (1 / (raw[:, None] - raw - offset)).mean(1).real
        values = raw - 2 * variance * green
    floor = max(FLOOR * tail, 1e-3 * noise_edge(sigma, dim), np.finfo(float).tiny)
    return np.maximum(values, floor), vectors, kept
