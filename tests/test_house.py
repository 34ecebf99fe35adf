"""The shape of the tree: what a newcomer can rely on when he looks for something."""

from collections import Counter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
MODULES = sorted(
    path for top in ("src", "fl") for path in (CHECKOUT / top).rglob("*.py") if path.stem[0] != "."
)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_folder_holds_more_than_fourteen_modules() -> None:
    folders = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert max(folders.values()) <= 14, folders.most_common(1)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_no_module_is_longer_than_four_hundred_lines(path: Path) -> None:
    assert lines(path) <= 400


def test_every_folder_says_in_a_sentence_what_it_is_about() -> None:
    for folder in {path.parent for path in MODULES} - {CHECKOUT / "src"}:
        assert (folder / "__init__.py").read_text().startswith('"""'), folder


def test_the_round_is_strategy_and_one_protocol_in_less_than_150_lines() -> None:
    server = CHECKOUT / "fl" / "server"
    assert lines(server / "strategy.py") + lines(server / "protocols" / "coreset.py") < 150
