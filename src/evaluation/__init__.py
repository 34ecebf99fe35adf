"""How well a detector does: image and pixel metrics, and anomaly maps as files and pictures."""

from src.evaluation.maps import load_anomaly_map, overlay, save_anomaly_map, save_maps
from src.evaluation.metrics import image_metrics, roc_curve_points
from src.evaluation.pixel import pixel_metrics

__all__ = [
    "image_metrics",
    "load_anomaly_map",
    "overlay",
    "pixel_metrics",
    "roc_curve_points",
    "save_anomaly_map",
    "save_maps",
]
