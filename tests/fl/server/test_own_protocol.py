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


def test_a_round_moves_rows_to_the_means_of_their_cells(run, parts) -> None:
    """The second round against the same step over the patches of all clients."""
    first, second = (
        run(
            merge__protocol="kmeans",
            merge__encoding="float32",
            num_server_rounds=rounds,
            merge__oversample=2.0 * rounds,  # as many rows in the first round
        )
        for rounds in (1, 2)
    )
    (before,), (after,) = first.model.banks.values(), second.model.banks.values()
    model = PatchCore.load(first.out / "model.safetensors", device="cpu")
    train = open_dataset("autovi", parts, None, "train")
    patches = np.concatenate([b.features.flatten(0, 2).numpy() for b in model.embed(train)])
    distances = ((patches[:, None].astype(np.float64) - before) ** 2).sum(axis=2)
    nearest = distances.argmin(axis=1)
    means = [patches[nearest == i].mean(axis=0) for i in range(len(before))]
    np.testing.assert_allclose(after, means, rtol=1e-3, atol=1e-3)  # banks rest as float16


def test_order_of_replies_does_not_matter(run) -> None:
    """Sums are added in the order of the clients' numbers."""
    banks = [
        run(merge__protocol="kmeans", num_server_rounds=2, shuffle=shuffle).model.banks
        for shuffle in (0, 3)
    ]
    assert all(np.array_equal(rows, banks[1][name]) for name, rows in banks[0].items())
