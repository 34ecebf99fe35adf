"""`fedpatchcore --help` answers without importing what only a run needs."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "scipy", "flwr", "matplotlib", "sklearn", "faiss")
PROGRAM = f"""
import sys
from fl.cli.main import main
try:
    main()
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""


@pytest.mark.parametrize("words", ["--help", "predict --help", "deploy --help"])
def test_help_imports_nothing_heavy(words: str) -> None:
    command = [sys.executable, "-c", PROGRAM, *words.split()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "Usage:" in ended.stdout
    assert ended.stdout.splitlines()[-1].strip() == "imported:"
