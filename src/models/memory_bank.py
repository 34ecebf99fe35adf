"""The memory bank: patch features of normal images, and nearest-neighbour search in it."""

from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from src.models.coreset.selection import as_tensor, greedy_coreset_selection
from src.models.coreset.statistics import refuse_nonfinite
from src.models.search.distances import count_nonfinite_rows
from src.models.search.flat_index import Exclusion, FlatIndex, rank_by_difference
from src.storage.tensor_file import FileError, read_tensors, write_tensors

FORMAT = "fedpatchcore-bank-1"


class MemoryBank:
    """Rows of patch features with exact Euclidean nearest-neighbour search.

    Args:
        feature_dim: dimension D of the rows.
        max_size: maximum number of rows; greedy selection reduces a larger bank.
        device: where searches run.

    Attributes:
        features: [N, D] float32 or float16 array.
    """

    def __init__(
        self, feature_dim: int, max_size: int | None = None, *, device: str | torch.device = "cpu"
    ) -> None:
        if feature_dim < 1 or (max_size is not None and max_size < 1):
            raise ValueError(f"feature_dim {feature_dim} and max_size {max_size} must be positive")
        self.feature_dim = feature_dim
        self.max_size = max_size
        self.device = torch.device(device)
        self.features = np.empty((0, feature_dim), np.float32)
        self._index: faiss.Index | None = None
        self._flat: FlatIndex | None = None

    def __len__(self) -> int:
        return len(self.features)

    def add(self, features: np.ndarray | Tensor) -> None:
        """Append rows [M, D].

        Raises:
            ValueError: features are not [M, feature_dim], or hold NaN or infinite values.
        """
        rows = _as_array(features)
        if rows.ndim != 2 or rows.shape[1] != self.feature_dim:
            raise ValueError(f"features are {rows.shape}, the bank takes [M, {self.feature_dim}]")
        refuse_nonfinite(count_nonfinite_rows(as_tensor(rows)), len(rows))
        self.features = np.concatenate([self.features, rows]) if len(self) else rows.copy()
        if self.max_size is not None and len(self) > self.max_size:
            self.features = greedy_coreset_selection(self.features, self.max_size)
        self._index = self._flat = None

    @property
    def index(self) -> faiss.Index:
        """The FAISS flat index over the features, built on first use."""
        return self.build_index() if self._index is None else self._index

    def build_index(self) -> faiss.Index:
        """Build the FAISS index over the current rows."""
        index: faiss.Index = faiss.IndexFlatL2(self.feature_dim)
        if self.device.type == "cuda" and _has_faiss_gpu():
            number = self.device.index or 0
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), number, index)
        index.add(np.ascontiguousarray(self.features, np.float32))
        self._index = index
        return index

    def search(self, query: np.ndarray | Tensor, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest rows of each query with FAISS; on a GPU without it, `neighbours`.

        Args:
            query: [M, D].
            k: number of neighbours, at most the number of rows.

        Returns:
            Euclidean distances [M, k] float32, ascending, and row indices [M, k] int64.

        Raises:
            ValueError: the bank is empty, the dimension differs, or k is out of range.
        """
        queries = as_tensor(query).to(self.device)
        self._check(queries, k)
        if self.device.type == "cpu" or _has_faiss_gpu():
            rows = np.ascontiguousarray(queries.cpu().numpy(), np.float32)
            nearest = torch.from_numpy(self.index.search(rows, k)[1]).to(self.device)
            # FAISS's own squared distances carry the rounding of a matrix product
            squared, indices = rank_by_difference(queries, self.flat.rows, nearest)
            distances = squared.sqrt()
        else:
            distances, indices = self.neighbours(queries, k)
        return distances.cpu().numpy(), indices.cpu().numpy()

    def neighbours(
        self, queries: Tensor, k: int = 1, exclusion: Exclusion | None = None
    ) -> tuple[Tensor, Tensor]:
        """`search` without FAISS, for tensors [M, D] on the bank's device.

        Returns:
            Euclidean distances [M, k], ascending, infinite for excluded rows; indices [M, k].
        """
        self._check(queries, k)
        if k == 1:
            squared, indices = (x[:, None] for x in self.flat.nearest(queries, exclusion))
        else:
            squared, indices = self.flat.k_nearest(queries, k, exclusion)
        return squared.sqrt(), indices

    @property
    def flat(self) -> FlatIndex:
        """The rows on the bank's device, prepared for searches on first use."""
        if self._flat is None:
            self._flat = FlatIndex(torch.from_numpy(self.features).to(self.device))
        return self._flat

    def save(self, path: str | Path) -> None:
        """Write the bank as safetensors."""
        write_tensors(path, FORMAT, {"max_size": self.max_size}, {"features": self.features})

    @classmethod
    def load(cls, path: str | Path) -> "MemoryBank":
        """Read a bank that `save` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            FileError: the file is truncated, is not a bank, or has another version.
        """
        header, tensors = read_tensors(path, FORMAT)
        try:
            bank = cls(tensors["features"].shape[1], header["max_size"])
            bank.add(tensors["features"])
            return bank
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise FileError(f"{path} holds no bank: {error!r}") from error

    def _check(self, queries: Tensor, k: int) -> None:
        if not 1 <= k <= len(self):
            raise ValueError(f"k is {k}: the bank holds {len(self)} rows")
        if queries.ndim != 2 or queries.shape[1] != self.feature_dim:
            raise ValueError(f"queries are {tuple(queries.shape)}, not [M, {self.feature_dim}]")


def _as_array(features: np.ndarray | Tensor) -> np.ndarray:
    rows = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    return rows if rows.dtype in (np.float32, np.float16) else rows.astype(np.float32)


def _has_faiss_gpu() -> bool:
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
