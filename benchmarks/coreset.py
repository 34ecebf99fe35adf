"""Compares greedy selection with its own matrix product and with other implementations.

    python benchmarks/coreset.py [--rows 50000] [--dim 512] [--fraction 0.1] [--repeats 5]
        [--device cpu] [--dtype float32] [--features synthetic] [--peers loop,anomalib,approximate]

First checks the picks: in test cases against a float64 loop, and in the benchmark against the
farthest row in float64. Prints a table, and a JSON line at the end. Our time and the product's are
medians after a warm-up; peers run once, after a small warm-up. Covering radii are in the full
dimension.
"""

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import (
    check_device,
    command_line,
    environment,
    extra_memory,
    keep_freed_memory,
    median_seconds,
    percent,
    report,
    speed,
)
from benchmarks.features import features
from benchmarks.peers import Select, anomalib, approximate, loop
from src.models.coreset.selection import IN_CACHE, farthest_first
from src.models.search.distances import tiles
from src.models.search.flat_index import FlatIndex

PEERS = ("loop", "anomalib", "approximate")
# largest relative shortfall of a pick's distance: float32 resolves squared distances to about
# sqrt(D) times its epsilon, which is 5e-6 at 1,536 dimensions
MAX_SHORTFALL = 5e-6
CHECKED_PICKS = 256  # picks per step of that check
BLOCK = {"cpu": (4096, 1024), "cuda": (65536, 4096)}  # rows and picks per product


def main() -> None:
    """Check, measure, print."""
    args = arguments()
    torch.set_float32_matmul_precision("highest")
    check(args)
    rows = features(args, args.rows)
    target = round(args.fraction * len(rows))
    picks, extra = extra_memory(lambda: select(rows, target, args), args.device)
    keep_freed_memory()
    notes = {
        "rows": len(rows),
        "dim": rows.shape[1],
        "target": len(picks),
        "devices": args.devices,
        "extra_memory_percent": percent(extra, rows.nbytes),
        "shortfall": shortfall(rows, picks),
    }
    measured = measure(rows, picks, args, notes)
    notes["ours_over_product"] = 1 / measured["product"]["times_ours"]
    title = f"{len(rows)} x {rows.shape[1]} -> {len(picks)}"
    report(title, measured, {**environment(args), **notes})


def select(rows: Tensor, target: int, args: argparse.Namespace) -> Tensor:
    """Our picks [k] int64, on the rows' device."""
    chosen = farthest_first(rows, target, devices=args.shares)
    return torch.as_tensor(chosen.indices, device=rows.device)


def measure(
    rows: Tensor, picks: Tensor, args: argparse.Namespace, notes: dict[str, object]
) -> dict[str, dict[str, float]]:
    """Time our selection, the product and the peers, and compare their picks.

    Args:
        rows: [N, D].
        picks: our picks [k] int64.
        args: the command line.
        notes: receives remarks on the peers.

    Returns:
        name -> column -> value.
    """
    target, plain = len(picks), rows.float()
    mine = median_seconds(lambda: select(rows, target, args), args.device, args.repeats)
    pure = median_seconds(lambda: product(plain, target), args.device, args.repeats)
    seconds, chosen = {"ours": mine, "product": pure}, {"ours": picks}
    for name in args.peers:
        peer, notes[name] = find(name)
        if peer:
            seconds[name], chosen[name] = timed(peer, plain, target, args.device)
    operations = 2 * rows.numel() * target
    measured = {name: speed(value, mine, operations) for name, value in seconds.items()}
    for name, selection in chosen.items():
        measured[name]["radius"] = radius(rows, selection)
        if "loop" in chosen:
            measured[name]["same_picks"] = float((selection == chosen["loop"]).float().mean())
    return measured


def find(name: str) -> tuple[Select | None, str]:
    """A peer by name, and a remark on it."""
    if name == "anomalib":
        return anomalib()
    return {"loop": loop, "approximate": approximate}[name], "reimplemented here, float32"


def timed(peer: Select, rows: Tensor, target: int, device: str) -> tuple[float, Tensor]:
    """Seconds and picks of one selection."""
    peer(rows[:2048], 64)
    picks: list[Tensor] = []
    seconds = median_seconds(lambda: picks.append(peer(rows, target)), device, 1)
    return seconds, picks[0]


def product(rows: Tensor, target: int) -> None:
    """The matrix product alone, with as many operations."""
    tile_rows, block = BLOCK[rows.device.type]
    for tile in tiles(target, block):
        columns = rows[tile].T
        for part in tiles(len(rows), tile_rows):
            rows[part] @ columns


def check(args: argparse.Namespace) -> None:
    """Check that the picks equal a float64 loop's, both sequentially and in blocks.

    Raises:
        SystemExit: they differ.
    """
    generator = np.random.default_rng(1)
    centres = 30 * generator.normal(size=(20, 32))
    cases = {
        "random": generator.normal(size=(3000, 32)),
        "clustered": centres[generator.integers(0, 20, 3000)]
        + generator.normal(size=(3000, 32)) / 9,
        "lattice": generator.integers(0, 4, (2000, 6)).astype(float),
        "many": generator.normal(size=(IN_CACHE // 64 + 5000, 64)),
    }
    for name, case in cases.items():
        rows = torch.tensor(case, dtype=getattr(torch, args.dtype), device=args.device)
        ours = farthest_first(rows, 200, devices=args.shares).indices
        if not np.array_equal(ours, loop(rows.double(), 200).cpu().numpy()):
            raise SystemExit(f"picks differ from the float64 loop's on {name} rows")


def shortfall(rows: Tensor, picks: Tensor) -> float:
    """Largest shortfall of a pick, computed in float64.

    Args:
        rows: [N, D].
        picks: [k] int64, in order.

    Returns:
        1 - d / D, where d and D are the distances of the pick and of the farthest row to all
        previous picks.

    Raises:
        SystemExit: it exceeds MAX_SHORTFALL.
    """
    origin = rows.mean(0, dtype=torch.float32).double()
    closest = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    worst = torch.zeros((), dtype=torch.float64, device=rows.device)
    for block in tiles(len(picks), CHECKED_PICKS):
        chosen = picks[block]
        centres = rows[chosen].double() - origin
        squares = (centres * centres).sum(1)
        gaps = torch.empty(len(chosen), len(rows), dtype=torch.float64, device=rows.device)
        for part in tiles(len(rows), 8192):
            tile = rows[part].double() - origin
            gaps[:, part] = torch.addmm((tile * tile).sum(1), centres, tile.T, alpha=-2)
        gaps += squares[:, None]
        for place in range(len(chosen)):
            if block.start + place:
                share = (closest[chosen[place]] / closest.max()).clamp(min=0).sqrt()
                worst = torch.maximum(worst, 1 - share)
            torch.minimum(closest, gaps[place], out=closest)
    if worst > MAX_SHORTFALL:
        raise SystemExit(f"a pick is closer than the farthest row by {worst:.1e} of its distance")
    return float(worst)


def radius(rows: Tensor, picks: Tensor) -> float:
    """Covering radius of the rows."""
    return float(FlatIndex(rows[picks]).nearest(rows)[0].max().sqrt())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, rows=50_000, dim=512)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; '' for none")
    parser.add_argument(
        "--devices", type=int, default=1, help="number of devices that share the work"
    )
    args = parser.parse_args()
    check_device(args.device)
    args.peers = [name for name in args.peers.split(",") if name]
    if unknown := set(args.peers) - set(PEERS):
        parser.error(f"--peers: unknown {', '.join(sorted(unknown))}; use {', '.join(PEERS)}")
    kind = torch.device(args.device).type
    names = [f"cuda:{i}" if kind == "cuda" else kind for i in range(args.devices)]
    args.shares = names if args.devices > 1 else None
    return args


if __name__ == "__main__":
    main()
