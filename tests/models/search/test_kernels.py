"""The GPU kernels: on a GPU where there is one, and through Triton's interpreter on any machine."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import kernel_checks
import pytest
import torch

from src.models.coreset import selection as coreset
from src.models.coreset import sharding as shards
from src.models.coreset.selection import farthest_first

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_they_do_what_they_must_through_the_interpreter():
    done = subprocess.run(
        [sys.executable, kernel_checks.__file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [check.__name__ for check in kernel_checks.CHECKS]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("check", kernel_checks.CHECKS, ids=lambda check: check.__name__)
def test_they_do_what_they_must_on_a_gpu(check, monkeypatch):
    monkeypatch.setattr(coreset, "IN_CACHE", 0)
    check("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("lies", ["in host memory", "pinned", "in three shards"])
def test_where_rows_lie_changes_no_pick(lies, dtype, monkeypatch):
    monkeypatch.setattr(coreset, "IN_CACHE", 0)
    rows = torch.randn(5000, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = farthest_first(rows.cuda(), 700).indices
    devices = ["cuda"]
    if lies == "in three shards":
        devices = ["cuda:0"] * 3
    else:
        monkeypatch.setattr(shards, "RESIDENT_SHARE", 0.0)
        monkeypatch.setattr(shards, "COPY_BYTES", 2**16)
        rows = rows.pin_memory() if lies == "pinned" else rows
    assert (farthest_first(rows, 700, devices=devices).indices == expected).all()
