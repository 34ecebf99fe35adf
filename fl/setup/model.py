"""From settings to the model."""

import functools

import torch

from fl.config import ConfigError, Settings
from src.models import FeatureExtractor, PatchCore


def build_model(settings: Settings) -> PatchCore:
    """The model of these settings with an empty bank; the same object for the same settings.

    Raises:
        ConfigError: an unknown backbone, or one without the layers asked for.
        WeightsError: backbone weights that cannot be loaded here.
    """
    layers = tuple(settings.model_layers.split(","))
    try:
        return _model(
            backbone=_extractor(settings.model_backbone, layers, settings.model_weights),
            coreset_percentage=settings.model_coreset_percentage,
            image_size=settings.image_size,
            scale=settings.image_scale,
            normalize_brightness=settings.data_normalize_brightness,
            crop=settings.data_crop or None,
            neighbors=settings.model_neighbors,
            border=settings.model_border,
            seed=settings.seed,
            memory_limit=settings.model_memory_limit_mb * 2**20 or None,
            cache=settings.cache,
        )
    except ValueError as error:
        raise ConfigError(f"model.backbone, model.layers: {error}") from error


@functools.lru_cache(maxsize=1)  # weights take long to load, and the runs of a sweep share them
def _extractor(backbone: str, layers: tuple[str, ...], weights: str) -> FeatureExtractor:
    local = None if weights in ("", "random") else weights
    return FeatureExtractor(backbone, layers, pretrained=weights != "random", weights=local)


@functools.lru_cache(maxsize=1)
def _model(**arguments: object) -> PatchCore:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return PatchCore(device=device, **arguments)  # type: ignore[arg-type]
