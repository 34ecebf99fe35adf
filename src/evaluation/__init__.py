"""Metrics of a detector: image-level, pixel-level, and how the clients of a federation differ."""

from src.evaluation.metrics import image_metrics
from src.evaluation.pixel import pixel_metrics

__all__ = ["image_metrics", "pixel_metrics"]
