"""Image scores and anomaly maps from patch distances (Roth et al. 2022, section 3.3)."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.extraction import Viewport
from src.models.features import Size
from src.models.memory_bank import MemoryBank
from src.models.search.flat_index import Exclusion, FlatIndex

SIGMA = 4.0  # of the Gaussian that smooths anomaly maps, in pixels of the network input


@dataclass(frozen=True)
class Prediction:
    """The model's result for one image. `PatchCore.anomaly_map` draws it."""

    score: float  # Euclidean image score; larger is more anomalous
    distances: np.ndarray  # [h, w] float32, distance of each patch to the bank
    image_size: Size  # (H, W)


def image_scores(
    bank: MemoryBank,
    features: Tensor,
    distances: Tensor,
    indices: Tensor,
    neighbors: int,
    excluded: Tensor | None = None,
) -> Tensor:
    """Score images by their largest patch distance, re-weighted by the density of the bank there.

    s = (1 - exp d(q, m*) / sum over m in N_b(m*) of exp d(q, m)) d(q, m*), equation 7, where q is
    the patch of largest distance, m* its nearest row, and N_b(m*) the b rows nearest to m*.

    Args:
        bank: the memory bank.
        features: [B, P, D] patches of the images.
        distances: [B, P] Euclidean distance of each patch to its nearest row.
        indices: [B, P] that row.
        neighbors: b; 1 or less returns the largest distance unchanged.
        excluded: [B, N] bool, rows of the bank that do not count for an image.

    Returns:
        [B] float32, infinite if all rows are excluded.
    """
    largest, q = distances.max(1)
    neighbors = min(neighbors, len(bank))
    if neighbors <= 1:
        return largest
    images = torch.arange(len(q), device=q.device)
    rows = bank.flat.rows
    closest = rows[indices[images, q]]
    exclusion = None if excluded is None else Exclusion(excluded, images)
    to_closest, support = bank.neighbours(closest, neighbors, exclusion)
    patches = features[images, q][:, None].float()
    to_support = (patches - rows[support].float()).norm(dim=2)
    to_support.masked_fill_(torch.isinf(to_closest), -torch.inf)
    weight = (1 - torch.exp(largest - torch.logsumexp(to_support, 1))).clamp(min=0)
    alone = torch.isfinite(to_support).sum(1) <= 1
    return torch.where(alone | torch.isinf(largest), largest, weight * largest)


def mask_border(distances: Tensor, border: int) -> Tensor:
    """Patch distances [B, h, w] with -infinity along the border, so the maximum lies inside.

    The middle of a grid is kept even if it lies within the border.
    """
    rows, columns = (min(border, (side - 1) // 2) for side in distances.shape[1:])
    margins = columns, columns, rows, rows
    return F.pad(F.pad(distances, [-margin for margin in margins]), margins, value=-torch.inf)


class CodedRows:
    """Finds the rows of a bank that came from an image although coding changed them.

    `sources` [n, D] are rows before coding, `decoded` [n, D] the same rows after decoding, of which
    some are in the bank.
    """

    def __init__(self, bank: MemoryBank, sources: Tensor, decoded: Tensor) -> None:
        distances, indices = bank.neighbours(decoded)
        in_bank = distances[:, 0] == 0
        self.bank_size, self.rows = len(bank), indices[in_bank, 0]
        self.index = FlatIndex(sources[in_bank]) if len(self.rows) else None

    def of(self, features: Tensor) -> Tensor:
        """Which rows of the bank came from the images' patches [B, P, D]: [B, N] bool."""
        own = torch.zeros(len(features), self.bank_size, dtype=torch.bool, device=features.device)
        if self.index:
            distances, source = (
                x.view(features.shape[:2]) for x in self.index.nearest(features.flatten(0, 1))
            )
            image, patch = torch.nonzero(distances == 0, as_tuple=True)
            own[image, self.rows[source[image, patch]]] = True
        return own


def exclude_own_rows(
    bank: MemoryBank,
    features: Tensor,
    distances: Tensor,
    indices: Tensor,
    coded: CodedRows | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Distances of images to the bank without the rows that came from the image itself.

    An image that contributed to the bank finds its own patches there, at distance zero. Without
    those rows it is scored like a new normal image. Arguments are those of `image_scores`; features
    are in the precision of the bank, and `coded` finds own rows that equal no patch.

    Returns:
        distances [B, P], infinite if the whole bank came from the image; indices [B, P]; and the
        excluded rows [B, N] bool.
    """
    if coded:
        own = coded.of(features)
    else:
        own = torch.zeros(len(features), len(bank), dtype=torch.bool, device=indices.device)
    image, patch = torch.nonzero(distances == 0, as_tuple=True)
    own[image, indices[image, patch]] = True
    image, patch = torch.nonzero(own.gather(1, indices), as_tuple=True)
    distances, indices = distances.clone(), indices.clone()
    if len(image):
        others, rows = bank.neighbours(features[image, patch], 1, Exclusion(own, image))
        distances[image, patch], indices[image, patch] = others[:, 0], rows[:, 0]
    return distances, indices, own


def anomaly_maps(distances: Tensor, image_size: Size, viewport: Viewport) -> Tensor:
    """Draw patch distances [B, h, w] as maps [B, H, W] float32 of the images.

    Upsamples bilinearly to the network input and smooths with a Gaussian (sigma 4). Undoes the
    centre crop, with zeros outside it, and resizes bilinearly to the size of the images.
    """
    resized, cropped = viewport.resized, viewport.cropped
    grid = distances.float()[:, None]
    maps = _smooth(F.interpolate(grid, size=cropped, mode="bilinear", align_corners=False))
    if cropped != resized:
        maps = _undo_crop(maps, resized, cropped)
    if resized != image_size:
        maps = F.interpolate(maps, size=image_size, mode="bilinear", align_corners=False)
    return maps[:, 0]


def _smooth(x: Tensor) -> Tensor:
    """Separable Gaussian over [B, 1, H, W]; borders are mirrored as far as the image reaches."""
    kernel = _kernel(x.device)
    for dim in (2, 3):
        radius = min(len(kernel) // 2, x.shape[dim] - 1)
        k = kernel[len(kernel) // 2 - radius : len(kernel) // 2 + radius + 1]
        k = (k / k.sum()).view((1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1))
        pad = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        x = F.conv2d(F.pad(x, pad, mode="reflect"), k)
    return x


@functools.cache
def _kernel(device: torch.device) -> Tensor:
    x = torch.arange(-int(4 * SIGMA), int(4 * SIGMA) + 1, device=device, dtype=torch.float32)
    return torch.exp(-0.5 * (x / SIGMA) ** 2)


def _undo_crop(x: Tensor, resized: Size, cropped: Size) -> Tensor:
    """Pad torchvision's centre crop back to the resized image; a crop beyond it is cut off."""
    height, width = (r - c for r, c in zip(resized, cropped, strict=True))
    top, left = (round(x / 2) if x >= 0 else -(-x // 2) for x in (height, width))
    return F.pad(x, (left, width - left, top, height - top))
