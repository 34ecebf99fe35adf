"""Public images: those of a folder, or in a simulation some that are held out as public."""

from pathlib import Path

import numpy as np

from fl.config import ConfigError, Settings
from fl.setup.data import open_public_holdout
from src.data import InspectionDataset, Sample
from src.data.layout import list_images
from src.federated.bank_set import SHARED, split_by_bank
from src.models import PatchCore
from src.privacy.records import sample_patches

MOST_PATCHES = 100_000  # patches of public images that a mechanism sees


def public_patches(settings: Settings, model: PatchCore, name: str) -> np.ndarray | None:
    """Patches [N, D] of a bank's public images, of unit length; None if there are none.

    Raises:
        ConfigError: the folder does not exist, or holds no images.
    """
    if not settings.has_public:
        return None
    random = np.random.default_rng(settings.seed)
    return sample_patches(model, public_images(settings, name), MOST_PATCHES, random)


def public_images(settings: Settings, name: str) -> InspectionDataset:
    """The public images of a bank.

    Raises:
        ConfigError: there are none.
    """
    if settings.data_public_holdout:
        return split_by_bank(open_public_holdout(settings), settings.model_scope)[name]
    return images_below(Path(settings.privacy_public_dir), name, "privacy.public-dir")


def images_below(root: Path, name: str, source: str) -> InspectionDataset:
    """All images of a folder as normal ones; of its subfolder named like the bank, if it has one.

    Args:
        root: the folder.
        name: of the bank.
        source: setting or option that named the folder, for messages.

    Raises:
        ConfigError: there are none.
    """
    place = root / name if name != SHARED and (root / name).is_dir() else root
    if not place.is_dir():
        raise ConfigError(f"{source} = {root}: there is no such folder")
    folders = [place, *sorted(p for p in place.rglob("*") if p.is_dir())]
    paths = [path for folder in folders for path in list_images(folder)]
    if not paths:
        raise ConfigError(f"{source} = {root}: it holds no images")
    samples = [Sample(p, p.relative_to(root).as_posix(), name, "train", 0, "good") for p in paths]
    return InspectionDataset("public", root, samples)
