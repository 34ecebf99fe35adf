"""Compares nearest-neighbour search with its own matrix product and with FAISS.

    python benchmarks/scoring.py [--queries 25000] [--rows 22000] [--dim 1536] [--repeats 5]
        [--device cpu] [--dtype float32] [--features synthetic]

First checks distances and indices of some queries against brute force in float64. Prints a table,
and a JSON line at the end; all times are medians after a warm-up. The split product on a GPU
consists of three half-precision products, which together are as accurate as float32.
"""

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import faiss
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
from src.models import MemoryBank
from src.models.search.distances import tiles
from src.models.search.flat_index import FlatIndex

CHECKED = 200  # queries to check
QUERIES, ROWS = 8192, 65536  # queries and rows per product


def main() -> None:
    """Check, measure, print."""
    args = arguments()
    torch.set_float32_matmul_precision("highest")
    queries, rows = features(args, args.queries + args.rows).split([args.queries, args.rows])
    bank = MemoryBank(rows.shape[1], device=args.device)
    bank.add(rows)
    check(queries[:CHECKED], rows, bank)
    (_, ours), extra = extra_memory(lambda: FlatIndex(rows).nearest(queries), args.device)
    keep_freed_memory()
    work: dict[str, Callable[[], object]] = {
        "ours": lambda: FlatIndex(rows).nearest(queries),
        "ours, the bank": lambda: bank.neighbours(queries),
    }
    notes: dict[str, object] = {
        "queries": len(queries),
        "rows": len(rows),
        "dim": rows.shape[1],
        "extra_memory_percent": percent(extra, queries.nbytes + rows.nbytes),
    }
    if searches_with_faiss(args.device):
        array = queries.float().cpu().numpy()
        theirs = torch.from_numpy(bank.index.search(array, 1)[1][:, 0])
        notes["same_as_faiss"] = float((ours.cpu() == theirs).float().mean())
        work["FAISS"] = lambda: bank.index.search(array, 1)
    else:
        notes["FAISS"] = "skipped, faiss-gpu is not installed"
    wide = queries.float(), rows.float()
    work["product"] = lambda: product(*wide)
    if queries.is_cuda:
        halves = [split(each) for each in wide]
        work["split product"] = lambda: split_product(*halves)
    seconds = {name: median_seconds(do, args.device, args.repeats) for name, do in work.items()}
    operations = 2 * len(queries) * len(rows) * rows.shape[1]
    for name in list(seconds)[2:]:
        notes[f"ours_over_{name.replace(' ', '_')}"] = seconds["ours"] / seconds[name]
    report(
        f"{len(queries)} queries, {len(rows)} x {rows.shape[1]}",
        {name: speed(value, seconds["ours"], operations) for name, value in seconds.items()},
        {**environment(args), **notes},
    )


def check(queries: Tensor, rows: Tensor, bank: MemoryBank) -> None:
    """Check distances (to 1e-5) and unambiguous indices against a search in float64.

    Raises:
        SystemExit: they differ.
    """
    distances = torch.cat([to_rows(queries, rows[part]) for part in tiles(len(rows), 4096)], 1)
    (best, second), (at, _) = (x.T for x in distances.topk(2, largest=False))
    clear = second - best > 1e-6 * second
    squared, index = FlatIndex(rows).nearest(queries)
    from_bank = (x[:, 0] for x in bank.neighbours(queries))
    for name, (distance, which) in {
        "FlatIndex": (squared.sqrt(), index),
        "bank": from_bank,
    }.items():
        if not torch.allclose(distance.double(), best, rtol=1e-5, atol=0):
            raise SystemExit(f"{name}: distances differ from the float64 search")
        if (which != at)[clear].any():
            raise SystemExit(f"{name}: indices differ from the float64 search")


def to_rows(queries: Tensor, rows: Tensor) -> Tensor:
    """Distances [M, N] in float64, by difference."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(queries.double(), rows.double(), compute_mode=mode)


def searches_with_faiss(device: str) -> bool:
    """Whether FAISS supports the device."""
    on_gpu = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    return device == "cpu" or on_gpu


def product(queries: Tensor, rows: Tensor) -> None:
    """The matrix product alone, with as many operations."""
    for tile in tiles(len(rows), ROWS):
        columns = rows[tile].T
        for part in tiles(len(queries), QUERIES):
            torch.mm(queries[part], columns)


def split(rows: Tensor) -> tuple[Tensor, Tensor]:
    """High and low parts [N, D] float16, which add up to the rows."""
    high = rows.half()
    return high, (rows - high).half()


def split_product(queries: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor]) -> None:
    """Three products: high with high, high with low, and low with high."""
    for tile in tiles(len(rows[0]), ROWS):
        for part in tiles(len(queries[0]), QUERIES):
            for left, right in ((0, 0), (0, 1), (1, 0)):
                torch.mm(queries[left][part], rows[right][tile].T, out_dtype=torch.float32)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, rows=22_000, dim=1536)
    parser.add_argument("--queries", type=int, default=25_000)
    args = parser.parse_args()
    check_device(args.device)
    return args


if __name__ == "__main__":
    main()
