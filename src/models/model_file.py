"""model.safetensors: banks, how their features are made, thresholds. Nothing executes on load."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.models.feature_transform import Frame
from src.storage.tensor_file import FileError, read_tensors, write_tensors

FORMAT = "fedpatchcore-model-1"


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes:
        config: keyword arguments of PatchCore that shape the features and the scores.
        fingerprint: of the backbone's weights.
        banks: bank name -> [N, D]; a model of one bank names it "bank", a run names its objects.
        thresholds: bank name -> image score from which on an image is anomalous.
        frames: bank name -> its coordinates, of those banks that do not lie in the features' own.
    """

    config: Mapping[str, object]
    fingerprint: str
    banks: Mapping[str, np.ndarray]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    frames: Mapping[str, Frame] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write as safetensors, folders made as needed."""
        header = {
            "config": dict(self.config),
            "fingerprint": self.fingerprint,
            "thresholds": dict(self.thresholds),
        }
        tensors = dict(self.banks)
        if self.frames:
            header["frames"] = sorted(self.frames)
            tensors |= {
                f"{part} of {name}": array
                for name, frame in self.frames.items()
                for part, array in vars(frame).items()
                if array is not None
            }
        write_tensors(path, FORMAT, header, tensors)

    @classmethod
    def read(cls, path: str | Path) -> "ModelFile":
        """Read what `write` wrote.

        Raises:
            FileNotFoundError: no such file.
            FileError: truncated, not a model, or of another version.
        """
        header, banks = read_tensors(path, FORMAT)
        try:
            frames = {
                name: Frame(*(banks.pop(f"{part} of {name}", None) for part in ("origin", "basis")))
                for name in header.get("frames", ())
            }
            config, fingerprint = header["config"], header["fingerprint"]
            return cls(config, fingerprint, banks, header["thresholds"], frames)
        except KeyError as error:
            raise FileError(f"{path} has no {error} in its header") from error
        except ValueError as error:
            raise FileError(f"{path}: {error}") from error

    def bank_named(self, name: str | None, path: str | Path) -> str:
        """The bank to use: the one named, or the only one.

        Raises:
            FileError: no such bank, or several and none named.
        """
        if name is None and len(self.banks) == 1:
            return next(iter(self.banks))
        if name is None or name not in self.banks:
            asked = f"has no bank {name!r}" if name else "holds several banks"
            raise FileError(f"{path} {asked}: name one of {', '.join(sorted(self.banks))}")
        return name
