"""Patch features of images: a frozen backbone, averages over neighbourhoods, one grid.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (CVPR 2022), section 3.1.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.backbone import create_backbone, fingerprint

Size = tuple[int, int]


class FeatureExtractor(nn.Module):
    """A frozen backbone that maps images to the feature maps of some of its stages.

    Arguments and errors are those of `create_backbone`.
    """

    mean: Tensor
    std: Tensor
    network: Any  # a timm feature network: an nn.Module with feature_info

    def __init__(
        self,
        backbone_name: str,
        layers: Sequence[str],
        pretrained: bool = True,
        *,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.backbone_name = backbone_name
        self.layers = list(layers)
        self.network = create_backbone(backbone_name, layers, pretrained, weights)
        self.weights = Path(weights).name if weights else "published" if pretrained else "random"
        self.fingerprint = fingerprint(self.network, layers)
        config: Any = self.network.pretrained_cfg
        self.interpolation = str(config["interpolation"])
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute feature maps.

        Args:
            x: images [B, 3, H, W] in [0, 1]; normalised here as in the backbone's training.

        Returns:
            layer name -> [B, C_layer, H/stride, W/stride].
        """
        maps = self.network((x - self.mean) / self.std)
        return dict(zip(self.layers, maps, strict=True))

    def get_feature_dim(self) -> int:
        """Dimension of the concatenated patch feature: the sum of the layers' channels."""
        return sum(self.network.feature_info.channels())

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Keep evaluation mode: the backbone is frozen, and so are its batch statistics."""
        return super().train(False)


def aggregate_features(
    layer_features: Mapping[str, Tensor], target_size: Size, patch_size: int = 3
) -> Tensor:
    """Average each layer over patch neighbourhoods and resize all layers to one grid.

    Args:
        layer_features: layer name -> [B, C_layer, h, w].
        target_size: the grid (H, W), usually the first layer's.
        patch_size: side of the averaged neighbourhood (odd; 1 leaves features unchanged).

    Returns:
        [B, C, H, W], the layers concatenated in the mapping's order.

    Raises:
        ValueError: there is no layer, or the patch size is even.
    """
    if not layer_features:
        raise ValueError("aggregate_features needs at least one layer")
    if patch_size < 1 or patch_size % 2 == 0:
        raise ValueError(f"patch_size is {patch_size}: it must be odd and positive")
    average = _by_products if next(iter(layer_features.values())).is_cuda else _by_pooling
    return torch.cat([average(x, target_size, patch_size) for x in layer_features.values()], dim=1)


def extract_patch_features(features: Tensor) -> Tensor:
    """Flatten a grid to rows: [B, C, H, W] -> [B*H*W, C], image by image, row by row."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _by_pooling(x: Tensor, size: Size, patch_size: int) -> Tensor:
    """Mean over each neighbourhood, then bilinear resizing.

    Pixels outside count as zeros, as in the reference implementations; see LOG.md.
    """
    x = F.avg_pool2d(x, patch_size, stride=1, padding=patch_size // 2, count_include_pad=True)
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _by_products(x: Tensor, size: Size, patch_size: int) -> Tensor:
    """`_by_pooling` as two matrix products, one per axis, which are much faster on a GPU."""
    batch, channels, height, width = x.shape
    down, across = (
        _axis(length, to, patch_size, x.dtype, x.device)
        for length, to in zip((height, width), size, strict=True)
    )
    rows = across @ x.permute(0, 2, 3, 1)  # [B, h, W, C]
    grid = down @ rows.view(batch, height, -1)  # [B, H, W * C]
    return grid.view(batch, *size, channels).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _axis(
    length: int, to: int, patch_size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The matrix of pooling and interpolation along one axis: [to, length]."""
    x = torch.eye(length, device=device)[None]  # one channel per position
    x = F.avg_pool1d(x, patch_size, stride=1, padding=patch_size // 2, count_include_pad=True)
    return F.interpolate(x, size=to, mode="linear", align_corners=False)[0].T.to(dtype).contiguous()
