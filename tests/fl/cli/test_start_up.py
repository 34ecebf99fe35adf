"""`fedpatchcore --help` answers without importing what only a run needs."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "scipy", "flwr", "matplotlib", "sklearn", "faiss")
PROGRAM = """
import sys
try:
    {statement}
finally:
    print("imported:", *(name for name in {heavy} if name in sys.modules))
"""


def heavy_imports(statement: str, *words: str, heavy: tuple[str, ...] = HEAVY) -> str:
    """Names of the heavy packages that a statement imports, in a process of its own."""
    program = PROGRAM.format(statement=statement, heavy=heavy)
    command = [sys.executable, "-c", program, *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return ended.stdout.splitlines()[-1].removeprefix("imported:").strip()


@pytest.mark.parametrize("words", ["--help", "predict --help", "deploy --help"])
def test_help_imports_nothing_heavy(words: str) -> None:
    heavy = (*HEAVY, "numpy", "fl.config")  # the settings take 0.2 s, which no help needs
    assert heavy_imports("from fl.cli.main import main; main()", *words.split(), heavy=heavy) == ""


def test_health_checks_import_nothing_heavy() -> None:
    assert heavy_imports("from fl.engines.superlink import healthy") == ""


def test_checking_settings_imports_nothing_heavy() -> None:
    statement = "from fl.config import *; check_settings(default_settings())"
    assert heavy_imports(statement) == ""
