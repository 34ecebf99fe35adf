"""model.safetensors: banks, how their features are computed, thresholds. Loading runs no code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.models.feature_transform import FeatureTransform
from src.storage.tensor_file import FileError, read_tensors, write_tensors

FORMAT = "fedpatchcore-model-2"


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file. A single model names its bank "bank"; a run names objects."""

    config: Mapping[str, object]  # the arguments of PatchCore that affect features and scores
    fingerprint: str  # of the backbone's weights
    banks: Mapping[str, np.ndarray]  # name -> [N, D]
    thresholds: Mapping[str, float]  # name -> image score above which an image is anomalous
    transforms: Mapping[str, FeatureTransform]  # only for the banks that have one

    def write(self, path: str | Path) -> None:
        """Write as safetensors; missing folders are created."""
        header = {
            "config": dict(self.config),
            "fingerprint": self.fingerprint,
            "thresholds": dict(self.thresholds),
            "transforms": sorted(self.transforms),
        }
        arrays = {
            f"{part} of {name}": array
            for name, transform in self.transforms.items()
            for part, array in vars(transform).items()
            if array is not None
        }
        write_tensors(path, FORMAT, header, {**self.banks, **arrays})

    @classmethod
    def read(cls, path: str | Path) -> "ModelFile":
        """Read what `write` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            FileError: the file is truncated, is not a model, or has another version.
        """
        header, banks = read_tensors(path, FORMAT)
        try:
            transforms = {
                name: FeatureTransform(
                    banks.pop(f"origin of {name}", None), banks.pop(f"basis of {name}", None)
                )
                for name in header["transforms"]
            }
            config, fingerprint = header["config"], header["fingerprint"]
            return cls(config, fingerprint, banks, header["thresholds"], transforms)
        except KeyError as error:
            raise FileError(f"{path} has no {error} in its header") from error
        except ValueError as error:
            raise FileError(f"{path}: {error}") from error

    def resolve_bank(self, name: str | None, path: str | Path) -> str:
        """The bank's name, or the name of the only bank.

        Raises:
            FileError: there is no such bank, or there are several and `name` is None.
        """
        if name is None and len(self.banks) == 1:
            return next(iter(self.banks))
        if name is None or name not in self.banks:
            problem = f"has no bank {name!r}" if name else "holds several banks"
            raise FileError(f"{path} {problem}: name one of {', '.join(sorted(self.banks))}")
        return name
