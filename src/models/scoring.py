"""From patch distances to images' scores and anomaly maps (Roth et al. 2022, section 3.3)."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.extraction import Size
from src.models.memory_bank import MemoryBank
from src.models.search.flat_index import Exclusion

SIGMA = 4.0  # of the Gaussian that smooths the map, in pixels of the network's input


def image_scores(
    bank: MemoryBank,
    features: Tensor,
    distances: Tensor,
    indices: Tensor,
    neighbors: int = 9,
    without: Tensor | None = None,
) -> Tensor:
    """Scores of images: the largest patch distance, re-weighted by the bank's density there.

    s = (1 - exp d(q, m*) / sum over m in N_b(m*) of exp d(q, m)) d(q, m*), equation 7, where q is
    the patch of largest distance, m* its nearest row and N_b(m*) the b rows nearest m*.

    Args:
        bank: the memory bank.
        features: the images' patches [B, P, D].
        distances: Euclidean distance of each patch to its nearest row [B, P].
        indices: that row [B, P].
        neighbors: b; 1 or less leaves the largest distance as it is.
        without: [B, N] bool, rows that for an image count as not in the bank.

    Returns:
        [B] float32, infinite where no row was left.
    """
    largest, q = distances.max(1)
    neighbors = min(neighbors, len(bank))
    if neighbors <= 1:
        return largest
    images = torch.arange(len(q), device=q.device)
    rows = bank.flat.rows
    closest = rows[indices[images, q]]
    to_closest, support = bank.neighbours(
        closest, neighbors, None if without is None else Exclusion(without, images)
    )
    patches = features[images, q][:, None].float()
    to_support = (patches - rows[support].float()).norm(dim=2)
    to_support.masked_fill_(torch.isinf(to_closest), -torch.inf)
    weight = (1 - torch.exp(largest - torch.logsumexp(to_support, 1))).clamp(min=0)
    alone = torch.isfinite(to_support).sum(1) <= 1
    return torch.where(alone | torch.isinf(largest), largest, weight * largest)


def without_border(distances: Tensor, border: int) -> Tensor:
    """Patch distances [B, h, w] with -infinity along the border, so that no largest is there.

    Of a grid that would be all border its middle is left.
    """
    if not border:
        return distances
    rows, columns = (min(border, (side - 1) // 2) for side in distances.shape[1:])
    inside = torch.full_like(distances, -torch.inf)
    middle = (slice(None), slice(rows, -rows or None), slice(columns, -columns or None))
    inside[middle] = distances[middle]
    return inside


def anomaly_maps(distances: Tensor, image_size: Size, resized: Size, cropped: Size) -> Tensor:
    """Patch distances as maps of the images.

    Bilinear upsampling to the network's input, Gaussian smoothing there (sigma 4), zeros where a
    centre crop left the image out, then bilinear to the image's own size.

    Args:
        distances: [B, h, w] on the patch grid.
        image_size: (H, W) of the images.
        resized: their size after resizing.
        cropped: their size after the crop, the network's input.

    Returns:
        [B, H, W] float32.
    """
    grid = distances.float()[:, None]
    at_input = _smooth(F.interpolate(grid, size=cropped, mode="bilinear", align_corners=False))
    if cropped != resized:
        at_input = _undo_crop(at_input, resized, cropped)
    if resized != image_size:
        at_input = F.interpolate(at_input, size=image_size, mode="bilinear", align_corners=False)
    return at_input[:, 0]


class CodedRows:
    """Which rows of a bank an image gave, where coding has changed them on their way there.

    Args:
        bank: the memory bank.
        sources: rows [n, D] as images gave them.
        decoded: the same rows [n, D] as they came out of the coding; some of them are in the bank.
    """

    def __init__(self, bank: MemoryBank, sources: Tensor, decoded: Tensor) -> None:
        distances, at = bank.neighbours(decoded)
        inside = distances[:, 0] == 0
        self.size, self.rows = len(bank), at[inside, 0]
        self.sources = MemoryBank(bank.feature_dim, device=bank.device)
        self.sources.add(sources[inside])

    def of(self, features: Tensor) -> Tensor:
        """The bank's rows that came of images' patches [B, P, D]: [B, N] bool."""
        own = torch.zeros(len(features), self.size, dtype=torch.bool, device=features.device)
        if len(self.sources):
            distances, at = self.sources.neighbours(features.flatten(0, 1))
            same = distances.view(features.shape[:2]) == 0
            image, patch = torch.nonzero(same, as_tuple=True)
            own[image, self.rows[at.view(features.shape[:2])[image, patch]]] = True
        return own


def leave_out_own(
    bank: MemoryBank,
    features: Tensor,
    distances: Tensor,
    indices: Tensor,
    coded: CodedRows | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Images' distances to the bank, for each without the rows that are the image's own.

    An image that helped to fill the bank finds its own patches there, at distance zero. To judge
    it as a fresh normal image would be, those rows are left out of the search.

    Args:
        bank: the memory bank.
        features: the images' patches [B, P, D], in the precision in which they entered the bank.
        distances: Euclidean distance of each patch to its nearest row [B, P].
        indices: that row [B, P].
        coded: finds rows that are an image's own though they equal none of its patches.

    Returns:
        distances [B, P], infinite where the whole bank is the image's own; indices [B, P]; and
        which rows were left out [B, N] bool.
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


def _smooth(x: Tensor) -> Tensor:
    """Separable Gaussian over [B, 1, H, W], the border mirrored as far as the image reaches."""
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
    at = torch.arange(-int(4 * SIGMA), int(4 * SIGMA) + 1, device=device, dtype=torch.float32)
    return torch.exp(-0.5 * (at / SIGMA) ** 2)


def _undo_crop(x: Tensor, resized: Size, cropped: Size) -> Tensor:
    """Put a centre crop back where it was taken; a crop beyond the image loses its rim."""
    top, left = (_margin(r, c) for r, c in zip(resized, cropped, strict=True))
    return F.pad(x, (left, resized[1] - cropped[1] - left, top, resized[0] - cropped[0] - top))


def _margin(resized: int, cropped: int) -> int:
    """Pixels before a centre crop; negative where it begins beyond the image (as torchvision)."""
    return round((resized - cropped) / 2) if resized >= cropped else -((cropped - resized) // 2)
