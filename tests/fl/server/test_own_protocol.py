"""The protocol that docs/how-to/own-protocol.md shows, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

from src.data import open_dataset
from src.models import PatchCore

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "own-protocol.md"


@pytest.fixture(scope="module", autouse=True)
def protocol() -> dict:
    """The names that the page's code defines."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)  # our own page
    return names


def test_rows_are_means_of_their_cells(run, parts) -> None:
    """After enough rounds Lloyd's algorithm stands still: each row is the mean of its patches."""
    done = run(merge__protocol="kmeans", num_server_rounds=30, merge__encoding="float32")
    rows = next(iter(done.model.banks.values())).astype(np.float64)
    model = PatchCore.load(done.out / "model.safetensors", device="cpu")
    train = open_dataset("autovi", parts, None, "train")
    patches = np.concatenate([b.features.flatten(0, 2).numpy() for b in model.embed(train)])
    distances = ((patches[:, None].astype(np.float64) - rows) ** 2).sum(axis=2)
    nearest = distances.argmin(axis=1)
    for i in np.unique(nearest):
        np.testing.assert_allclose(rows[i], patches[nearest == i].mean(axis=0), atol=1e-2)


def test_order_of_replies_does_not_matter(run) -> None:
    """Sums are added in the order of the clients' numbers."""
    banks = [
        run(merge__protocol="kmeans", num_server_rounds=2, shuffle=shuffle).model.banks
        for shuffle in (0, 3)
    ]
    assert all(np.array_equal(rows, banks[1][name]) for name, rows in banks[0].items())
