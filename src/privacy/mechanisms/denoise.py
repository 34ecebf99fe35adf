"""What is best made of vectors and matrices that carry Gaussian noise of known size."""

import numpy as np

LEAST = 0.3  # of the mean eigenvalue below the noise edge, under which none is put


def shrunk(rows: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Rows [K, d] that carry noise of these deviations [K], nearer to zero (James and Stein)."""
    dim = rows.shape[1]
    noise = max(0, dim - 2) * sigmas**2
    lengths = np.maximum((rows * rows).sum(1), np.finfo(float).tiny)
    return rows * np.maximum(0, 1 - noise / lengths)[:, None]


def noise_edge(sigma: float, dim: int) -> float:
    """How large eigenvalues of noise alone are: the edge of the semicircle, √2 σ √D.

    Noise of deviation σ on the entries of `contributions.to_vector`.
    """
    return float(np.sqrt(2 * dim) * sigma)


def denoised(noisy: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Eigenvalues [D], eigenvectors [D, D] of a covariance that carries noise; falling.

    Eigenvectors stay; eigenvalues w_k become w_k − 2 v Re G(w_k), with G(z) = mean 1 / (z − w_j) a
    little off the real axis and v = σ² D / 2: of all that leave the eigenvectors, the closest to
    the truth for large D (Bun, Allez, Bouchaud and Potters, 2016, equation 44).

    Args:
        noisy: [D, D], symmetric.
        sigma: of the noise on its entries, as `contributions.to_vector` has them.

    Returns:
        the values, positive; the vectors, in columns; and how many of them stand above the noise.
    """
    raw, vectors = np.linalg.eigh((noisy + noisy.T) / 2)
    raw, vectors = raw[::-1], vectors[:, ::-1]
    dim = len(raw)
    kept = int((raw > noise_edge(sigma, dim)).sum())
    tail = raw[kept:].mean() if kept < dim else raw[-1]
    values = raw
    if sigma > 0:
        variance = sigma * sigma * dim / 2
        off = 2j * np.sqrt(variance / dim)
        green = (1 / (raw[:, None] - raw - off)).mean(1).real
        values = raw - 2 * variance * green
    least = max(LEAST * tail, 1e-3 * noise_edge(sigma, dim), np.finfo(float).tiny)
    return np.maximum(values, least), vectors, kept
