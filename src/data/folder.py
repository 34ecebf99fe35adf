"""Folders in the layout of MVTec AD: the folder of one object, or a folder of objects."""

from collections.abc import Sequence
from pathlib import Path

from src.data.dataset import InspectionDataset
from src.data.layout import absolute_root, read_samples


class FolderDataset(InspectionDataset):
    """Images in `train/good` and `test/{good,<defect>}`.

    Masks are `ground_truth/<defect>/<stem>_mask.png` or `<stem>.png`; each connected component is
    one defect. `root` is the folder of one object or contains several; an object is named after
    its folder. An optional metadata.csv, in the object's folder or in `root`, has a column `path`
    relative to itself. Its optional column `mask` names the mask (empty: unknown ground truth),
    and all other columns become `Sample.metadata`. Raises `DataError` for any other layout.
    """

    def __init__(
        self, root: str | Path, objects: str | Sequence[str] | None = None, split: str = "train"
    ) -> None:
        folder = absolute_root(root)
        super().__init__(folder.name, folder, read_samples(folder, objects, split, _find_masks))


def _find_masks(folder: Path, defect: str, image: Path) -> tuple[Path, ...]:
    parent = folder / "ground_truth" / defect
    candidates = (parent / f"{image.stem}_mask.png", parent / f"{image.stem}.png")
    return tuple(path for path in candidates if path.is_file())[:1]
