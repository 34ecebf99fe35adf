"""How well a detector does: image and pixel metrics."""

from src.evaluation.metrics import image_metrics, roc_curve_points
from src.evaluation.pixel import pixel_metrics

__all__ = [
    "image_metrics",
    "pixel_metrics",
    "roc_curve_points",
]
