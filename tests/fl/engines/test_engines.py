"""The simulation engine and the inline engine give the same run and the same errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fl.setup.data import open_split, partition_data
from tests.fl.deployment.test_deployment import ONE_CONFIG

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[3]


def fedpatchcore(*words: object) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    command = [sys.executable, "-m", "fl.cli.main", *map(str, words)]
    return subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=550, check=False
    )


def demo(folder: Path, engine: str) -> Path:
    """Run the demo with an empty cache."""
    out = folder / engine
    cache = f"cache.dir={folder / f'cache-{engine}'}"
    ended = fedpatchcore("demo", "--engine", engine, "--out", out, "--set", cache)
    assert ended.returncode == 0, ended.stderr
    return out


def test_the_demo_is_identical_inline_and_on_ray(tmp_path: Path) -> None:
    here, ray = demo(tmp_path, "inline"), demo(tmp_path, "ray")
    for name in ("model.safetensors", "partition.json", "scores.csv"):
        assert (here / name).read_bytes() == (ray / name).read_bytes(), name
    metrics = [json.loads((out / "metrics.json").read_text()) for out in (here, ray)]
    for key in ("local", "federated", "centralized", "objects", "bank", "threshold", "traffic"):
        assert metrics[0][key] == metrics[1][key], key
    maps = sorted(path.relative_to(here) for path in (here / "maps").rglob("*.png"))
    assert len(maps) == 48
    assert all((here / name).read_bytes() == (ray / name).read_bytes() for name in maps)


@pytest.mark.parametrize("changes", ONE_CONFIG)
def test_the_deployed_configs_give_the_same_bank_on_ray(
    run, flat, tmp_path: Path, changes: dict
) -> None:
    """With test_deployment's inline and deployed runs of it: one config, three ways, one bank."""
    inline, out = run(clients=2, **changes).out, tmp_path / "ray"
    given = flat(clients=2, engine="ray", out=str(out), **changes)
    words = [w for k, v in given.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    ended = fedpatchcore("simulate", *words)
    assert ended.returncode == 0, ended.stderr
    for name in ("model.safetensors", "partition.json", "scores.csv"):
        assert (inline / name).read_bytes() == (out / name).read_bytes(), name


def test_a_client_that_fails_on_ray_is_named_with_its_error(
    parts: Path, cache: Path, settings, tmp_path: Path
) -> None:
    root = shutil.copytree(parts, tmp_path / "parts")
    checked = settings(data__root=str(root), clients=2)
    partition = partition_data(checked, open_split(checked), 2)
    image = root / partition.clients[1].train[0]
    image.write_bytes(b"no image")
    flat = checked.flat() | {"engine": "ray", "out": str(tmp_path / "run")}
    words = [w for k, v in flat.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    ended = fedpatchcore("simulate", *words)
    assert ended.returncode == 1
    assert "only 1 of 2 clients sent a bank that can be merged, 2 are needed" in ended.stderr
    assert f"client 1: DataError: cannot read image {image}" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert str(tmp_path / "run" / "run.log") in ended.stderr
