"""Coordinates in which patches are compared with a bank, if these are not the features' own."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureTransform:
    """Scales a patch x to unit length, and maps it to (x - origin) @ basis if these are set.

    Raises:
        ValueError: only one of the two is set, shapes disagree, or values are not finite.
    """

    origin: np.ndarray | None = None  # [D]
    basis: np.ndarray | None = None  # [D, d]

    def __post_init__(self) -> None:
        if (self.origin is None) != (self.basis is None):
            raise ValueError("a feature transform needs both an origin and a basis, or neither")
        if self.origin is None or self.basis is None:
            return
        if self.basis.ndim != 2 or self.origin.shape != self.basis.shape[:1]:
            shapes = f"{self.origin.shape} and {self.basis.shape}"
            raise ValueError(f"origin and basis must be [D] and [D, d], not {shapes}")
        if not (np.isfinite(self.origin).all() and np.isfinite(self.basis).all()):
            raise ValueError("origin or basis of a feature transform hold NaN or infinite values")

    def output_dim(self, dim: int) -> int:
        """Dimension d of transformed features of dimension D.

        Raises:
            ValueError: the transform takes features of another dimension.
        """
        if self.basis is None:
            return dim
        if len(self.basis) != dim:
            raise ValueError(f"the transform takes {len(self.basis)} features, not {dim}")
        return self.basis.shape[1]

    def apply(self, patches: Tensor) -> Tensor:
        """Transform patches [..., D] to [..., d] float32; a patch of zeros is not scaled."""
        units = torch.nn.functional.normalize(patches.float(), dim=-1, eps=1e-12)
        if self.origin is None or self.basis is None:
            return units
        origin, basis = (
            torch.tensor(array, dtype=torch.float32, device=patches.device)
            for array in (self.origin, self.basis)
        )
        return (units - origin) @ basis
