"""How much the clients' images differ, and how equally the merged bank serves the clients."""

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
    owner = np.asarray(clients)
    total = np.square(means - means.mean(0)).sum()
    groups = [means[owner == client] for client in np.unique(owner)]
    within = sum(np.square(rows - rows.mean(0)).sum() for rows in groups)
    freedom = len(means) - len(groups)
    if not total or freedom < 1:
        return 0.0
    return float(max(0.0, 1 - within / freedom * (len(means) - 1) / total))


def value_skew(values: Sequence[Sequence[str]]) -> float:
    """Mean total variation distance of each client's values from all clients' pooled, 0 to 1.

    Args:
        values: for each client, the value (category, attribute) of each of its images. Clients
            are weighted by their number of images.
    """
    pooled = Counter(value for own in values for value in own)
    images = sum(pooled.values())
    distances = []
    for own in values:
        counts = Counter(own)
        gaps = (abs(counts[v] / len(own) - n / images) for v, n in pooled.items())
        distances.append(sum(gaps) / 2 * len(own) if own else 0.0)
    return sum(distances) / images


def size_skew(sizes: Sequence[int]) -> float:
    """1 - Jain's index of the clients' numbers of images: 0 where all hold equally many."""
    return 1 - jain(sizes)


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness (1984), (sum x)^2 / (n sum x^2): from 1/n to 1, all being equal."""
    x = np.asarray(values, float)
    return float(x.sum() ** 2 / (len(x) * np.square(x).sum())) if x.any() else 1.0


def fairness(auroc: Mapping[int, float]) -> dict:
    """How equally image AUROC is spread over clients, as metrics.json holds it.

    Args:
        auroc: client -> image AUROC on its own test images.

    Returns:
        `clients`, the `worst` value, `worst_client`, the `gap` to the best, and `jain`'s index;
        empty without a client.
    """
    if not auroc:
        return {}
    worst = min(auroc, key=lambda client: auroc[client])
    return {
        "clients": [{"client": c, "image_auroc": auroc[c]} for c in sorted(auroc)],
        "worst": auroc[worst],
        "worst_client": worst,
        "gap": max(auroc.values()) - auroc[worst],
        "jain": jain(list(auroc.values())),
    }
