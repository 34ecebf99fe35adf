"""How unlike the clients of a federation are, and how unequally the merged bank serves them."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np


def feature_shift(means: np.ndarray, clients: Sequence[int]) -> float:
    """Share of the images' variance in feature space that lies between clients, 0 to 1.

    Epsilon squared of a one-way analysis of variance (Kelley, 1935), summed over dimensions: about
    0 for images dealt at random, however many clients there are, and 1 where all images of a
    client are alike. Negative estimates count as 0.

    Args:
        means: [N, D] mean patch feature of each image.
        clients: [N] who holds it.
    """
    number = np.asarray(clients)
    total = np.square(means - means.mean(0)).sum()
    held = [means[number == client] for client in np.unique(number)]
    within = sum(np.square(rows - rows.mean(0)).sum() for rows in held)
    free = len(means) - len(held)
    if not total or free < 1:
        return 0.0
    return float(max(0.0, 1 - within / free * (len(means) - 1) / total))


def value_skew(values: Sequence[Sequence[str]]) -> float:
    """Mean total variation distance of the clients' values from all clients' together, 0 to 1.

    Args:
        values: for each client, the value (category, attribute) of each of its images. A client
            weighs as much as it has images.
    """
    pooled = Counter(value for held in values for value in held)
    images = sum(pooled.values())
    distances = []
    for held in values:
        own = Counter(held)
        gaps = (abs(own[v] / len(held) - n / images) for v, n in pooled.items())
        distances.append(sum(gaps) / 2 * len(held) if held else 0.0)
    return sum(distances) / images


def size_skew(sizes: Sequence[int]) -> float:
    """1 - Jain's index of the clients' numbers of images: 0 where all hold as many."""
    return 1 - jain(sizes)


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness (1984), (sum x)^2 / (n sum x^2): from 1/n to 1, all being equal."""
    x = np.asarray(values, float)
    return float(x.sum() ** 2 / (len(x) * np.square(x).sum())) if x.any() else 1.0


def fairness(figures: Mapping[int, float]) -> dict:
    """How equally a figure is spread over clients.

    Args:
        figures: client -> its figure, such as the image AUROC on its own test images.

    Returns:
        `clients`, and of them the `worst`, which it is, the `gap` to the best, and `jain`'s index;
        nothing without a client.
    """
    if not figures:
        return {}
    worst = min(figures, key=lambda client: figures[client])
    return {
        "clients": [{"client": c, "image_auroc": figures[c]} for c in sorted(figures)],
        "worst": figures[worst],
        "worst_client": worst,
        "gap": max(figures.values()) - figures[worst],
        "jain": jain(list(figures.values())),
    }
