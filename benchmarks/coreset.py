"""Greedy selection against a plain farthest-first loop, on the same rows in the same run.

    python benchmarks/coreset.py [--rows 50000] [--dim 512] [--fraction 0.1] [--repeats 5]

First checks the picks against a float64 loop on small cases, then times both. The loop is as quick
as one gets in float32: norms once, one matrix-vector product a pick, the running minimum in place.
Prints a table, and one JSON line last.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

from src.models.coreset import farthest_first
from src.models.nearest import nearest


def main() -> None:
    """Check, measure, print."""
    args = arguments()
    check()
    rows = features(args.rows, args.dim)
    target = round(args.fraction * args.rows)
    seconds = {
        "selection": median_seconds(lambda: farthest_first(rows, target), args.repeats),
        "product": median_seconds(lambda: product(rows, target), args.repeats),
        "loop": median_seconds(lambda: loop(rows, target), 1, warm_up=False),
    }
    ours, theirs = torch.as_tensor(farthest_first(rows, target).indices), loop(rows, target)
    result = {
        "rows": args.rows,
        "dim": args.dim,
        "target": target,
        "seconds": seconds,
        "loop_over_selection": seconds["loop"] / seconds["selection"],
        "selection_over_product": seconds["selection"] / seconds["product"],
        "gflops": 2e-9 * args.rows * target * args.dim / seconds["selection"],
        "same_picks": float((ours == theirs).float().mean()),
        "radius": {"selection": radius(rows, ours), "loop": radius(rows, theirs)},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    print(f"{args.rows} x {args.dim} -> {target}, {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        print(f"  {name:10} {value:8.2f} s")
    print(f"  {result['loop_over_selection']:.1f} times faster than the loop")
    print(json.dumps(result))


def features(rows: int, dim: int) -> Tensor:
    """Rows like patch features: a few dozen strong directions, noise in all, seeded."""
    generator = torch.Generator().manual_seed(0)
    strength = 2 * torch.rand(64, generator=generator)
    directions = torch.randn(64, dim, generator=generator) / 8
    codes = torch.randn(rows, 64, generator=generator) * strength
    return codes @ directions + 0.3 * torch.randn(rows, dim, generator=generator)


def loop(rows: Tensor, target: int, seed: int = 42) -> Tensor:
    """Plain farthest-first in the rows' own precision."""
    norms = (rows * rows).sum(1)
    pick = int(np.random.default_rng(seed).integers(len(rows)))
    distances = torch.full((len(rows),), torch.inf, dtype=rows.dtype)
    picks = [pick]
    for _ in range(target - 1):
        torch.minimum(distances, norms + norms[pick] - 2 * (rows @ rows[pick]), out=distances)
        distances[pick] = -1
        pick = int(distances.argmax())
        picks.append(pick)
    return torch.tensor(picks)


def product(rows: Tensor, target: int, block: int = 1024) -> None:
    """The matrix product of the same operations, by itself."""
    for start in range(0, target, block):
        columns = rows[start : min(start + block, target)].T
        for first in range(0, len(rows), 4096):
            rows[first : first + 4096] @ columns


def check() -> None:
    """Picks equal a float64 loop's on small cases of several kinds.

    Raises:
        SystemExit: they do not.
    """
    generator = np.random.default_rng(1)
    centres = 30 * generator.normal(size=(20, 32))
    cases = {
        "random": generator.normal(size=(3000, 32)),
        "clustered": centres[generator.integers(0, 20, 3000)]
        + generator.normal(size=(3000, 32)) / 9,
        "lattice": generator.integers(0, 4, (2000, 6)).astype(float),
    }
    for name, case in cases.items():
        rows = torch.tensor(case, dtype=torch.float32)
        if not np.array_equal(farthest_first(rows, 200).indices, loop(rows.double(), 200).numpy()):
            raise SystemExit(f"picks differ from the float64 loop's on {name} rows")


def radius(rows: Tensor, picks: Tensor) -> float:
    """Covering radius of the rows by the picks."""
    return float(nearest(rows, rows[picks])[0].max().sqrt())


def median_seconds(work: Callable[[], object], repeats: int, warm_up: bool = True) -> float:
    """Median time of `repeats` calls."""
    if warm_up:
        work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
