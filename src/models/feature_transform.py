"""The coordinates in which distances to a bank are taken, where they are not the features' own."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """A patch x, scaled to unit length, lies at (x − origin) @ basis; without these, at x.

    Attributes:
        origin: [D], or None.
        basis: [D, d], or None.

    Raises:
        ValueError: one without the other, shapes that do not agree, or values that are not finite.
    """

    origin: np.ndarray | None = None
    basis: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.origin is None) != (self.basis is None):
            raise ValueError("a frame has an origin and a basis, or neither")
        if self.origin is None or self.basis is None:
            return
        if self.basis.ndim != 2 or self.origin.shape != self.basis.shape[:1]:
            shapes = f"{self.origin.shape} and {self.basis.shape}"
            raise ValueError(f"origin and basis of a frame must be [D] and [D, d], not {shapes}")
        if not (np.isfinite(self.origin).all() and np.isfinite(self.basis).all()):
            raise ValueError("origin or basis of a frame hold NaN or infinite values")

    def dim(self, features: int) -> int:
        """Coordinates d of patches of so many features.

        Raises:
            ValueError: the frame is for another number of features.
        """
        if self.basis is None:
            return features
        if len(self.basis) != features:
            raise ValueError(f"the frame takes {len(self.basis)} features, not {features}")
        return self.basis.shape[1]

    def place(self, patches: Tensor) -> Tensor:
        """Patches [..., D] in its coordinates: [..., d] float32; patches of zeros stay zeros."""
        units = torch.nn.functional.normalize(patches.float(), dim=-1, eps=1e-12)
        if self.origin is None or self.basis is None:
            return units
        origin, basis = (
            torch.tensor(each, dtype=torch.float32, device=patches.device)
            for each in (self.origin, self.basis)
        )
        return (units - origin) @ basis
