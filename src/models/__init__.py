"""PatchCore: backbones, patch features, memory banks, coresets, and anomaly scores."""

from src.models.backbone import WeightsError
from src.models.coreset.selection import greedy_coreset_selection, random_coreset_selection
from src.models.features import FeatureExtractor, aggregate_features, extract_patch_features
from src.models.memory_bank import MemoryBank
from src.models.patchcore import PatchCore
from src.storage.tensor_file import FileError

__all__ = [
    "FeatureExtractor",
    "FileError",
    "MemoryBank",
    "PatchCore",
    "WeightsError",
    "aggregate_features",
    "extract_patch_features",
    "greedy_coreset_selection",
    "random_coreset_selection",
]
