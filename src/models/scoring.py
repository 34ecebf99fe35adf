"""From patch distances to an image's score and its anomaly map (Roth et al. 2022, section 3.3)."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.extraction import Size
from src.models.memory_bank import MemoryBank
from src.models.nearest import nearest

SIGMA = 4.0  # of the Gaussian that smooths the map, in pixels of the network's input


def image_score(
    bank: MemoryBank,
    features: Tensor,
    distances: Tensor,
    indices: Tensor,
    neighbors: int = 9,
    without: Tensor | None = None,
) -> float:
    """Score of an image: its largest patch distance, re-weighted by the bank's density there.

    s = (1 - exp d(q, m*) / sum over m in N_b(m*) of exp d(q, m)) d(q, m*), equation 7, where q is
    the patch of largest distance, m* its nearest row and N_b(m*) the b rows nearest m*.

    Args:
        bank: the memory bank.
        features: the image's patches [P, D].
        distances: Euclidean distance of each patch to its nearest row [P].
        indices: that row [P].
        neighbors: b; 1 or less leaves the largest distance as it is.
        without: [N] bool, rows to treat as not in the bank.
    """
    q = int(distances.argmax())
    largest = distances[q]
    if min(neighbors, len(bank)) <= 1 or torch.isinf(largest):
        return float(largest)
    support = _support(bank, int(indices[q]), neighbors, without)
    if len(support) == 1:
        return float(largest)
    to_support = (features[q].float() - support.float()).norm(dim=1)
    weight = 1 - torch.exp(largest - torch.logsumexp(to_support, 0))
    return float(weight.clamp(min=0) * largest)


def _support(bank: MemoryBank, row: int, neighbors: int, without: Tensor | None) -> Tensor:
    """The rows nearest a row of the bank, itself among them [b, D]."""
    left_out = 0 if without is None else int(without.sum())
    _, found = bank.neighbours(bank.rows()[row][None], min(neighbors + left_out, len(bank)))
    kept = found[0] if without is None else found[0][~without[found[0]]]
    return bank.rows()[kept[:neighbors]]


def anomaly_map(distances: Tensor, image_size: Size, resized: Size, cropped: Size) -> Tensor:
    """Patch distances as a map of the image.

    Bilinear upsampling to the network's input, Gaussian smoothing there (sigma 4), zeros where a
    centre crop left the image out, then bilinear to the image's own size.

    Args:
        distances: [h, w] on the patch grid.
        image_size: (H, W) of the image.
        resized: its size after resizing.
        cropped: its size after the crop, the network's input.

    Returns:
        [H, W] float32.
    """
    grid = distances.float()[None, None]
    at_input = _smooth(F.interpolate(grid, size=cropped, mode="bilinear", align_corners=False))
    if cropped != resized:
        at_input = _undo_crop(at_input, resized, cropped)
    if resized != image_size:
        at_input = F.interpolate(at_input, size=image_size, mode="bilinear", align_corners=False)
    return at_input[0, 0]


def leave_out_own(
    bank: MemoryBank, features: Tensor, distances: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """An image's distances to the bank without the rows that are the image's own.

    An image that helped to fill the bank finds its own patches there, at distance zero. To judge
    it as a fresh normal image would be, those rows are left out of the search.

    Args:
        bank: the memory bank.
        features: the image's patches [P, D], in the precision in which they entered the bank.
        distances: Euclidean distance of each patch to its nearest row [P].
        indices: that row [P].

    Returns:
        distances [P], infinite where the whole bank is the image's own; indices [P]; and which
        rows were left out [N] bool.
    """
    own = torch.zeros(len(bank), dtype=torch.bool, device=indices.device)
    own[indices[distances == 0]] = True
    affected = own[indices]
    if not affected.any():
        return distances, indices, own
    distances, indices = distances.clone(), indices.clone()
    squared, indices[affected] = nearest(features[affected], bank.rows(), own)
    distances[affected] = squared.sqrt()
    return distances, indices, own


def _smooth(x: Tensor) -> Tensor:
    """Separable Gaussian over [1, 1, H, W], the border mirrored as far as the image reaches."""
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
