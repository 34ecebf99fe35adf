"""Nearest-neighbour search against its own matrix product and against FAISS, in one run.

    python benchmarks/scoring.py [--queries 25000] [--rows 22000] [--dim 1536] [--repeats 5]
        [--device cpu] [--dtype float32] [--features synthetic]

First checks distances and indices of some queries against brute force in float64. Prints a table,
and one JSON line last; all times are medians after a warm-up. On a GPU the split product is three
of half precision, which together have float32's accuracy.
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
    extra_memory,
    figures,
    keep_freed_memory,
    median_seconds,
    percent,
    report,
    setting,
)
from benchmarks.features import features
from src.models import MemoryBank
from src.models.search.distances import tiles
from src.models.search.flat_index import FlatIndex

CHECKED = 200  # queries
QUERIES, ROWS = 8192, 65536  # a tile of the products


def main() -> None:
    """Check, measure, print."""
    args = arguments()
    torch.set_float32_matmul_precision("highest")
    queries, rows = features(args, args.queries + args.rows).split([args.queries, args.rows])
    bank = MemoryBank(rows.shape[1], device=args.device)
    bank.add(rows)
    check(queries[:CHECKED], rows, bank)
    (_, found), extra = extra_memory(lambda: FlatIndex(rows).nearest(queries), args.device)
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
        asked = queries.float().cpu().numpy()
        theirs = torch.from_numpy(bank.index.search(asked, 1)[1][:, 0])
        notes["same_as_faiss"] = float((found.cpu() == theirs).float().mean())
        work["FAISS"] = lambda: bank.index.search(asked, 1)
    else:
        notes["FAISS"] = "left out, faiss-gpu is not installed"
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
        {name: figures(value, seconds["ours"], operations) for name, value in seconds.items()},
        {**setting(args), **notes},
    )


def check(queries: Tensor, rows: Tensor, bank: MemoryBank) -> None:
    """Distances are those of a float64 search to 1e-5, indices too where no second is as close.

    Raises:
        SystemExit: they are not.
    """
    distances = torch.cat([to_rows(queries, rows[part]) for part in tiles(len(rows), 4096)], 1)
    (best, second), (at, _) = (x.T for x in distances.topk(2, largest=False))
    clear = second - best > 1e-6 * second
    squared, index = FlatIndex(rows).nearest(queries)
    from_bank = (x[:, 0] for x in bank.neighbours(queries))
    for name, (found, which) in {"FlatIndex": (squared.sqrt(), index), "bank": from_bank}.items():
        if not torch.allclose(found.double(), best, rtol=1e-5, atol=0):
            raise SystemExit(f"{name}: distances differ from the float64 search's")
        if (which != at)[clear].any():
            raise SystemExit(f"{name}: other rows are closest in a float64 search")


def to_rows(queries: Tensor, rows: Tensor) -> Tensor:
    """Distances [M, N] in float64, by difference."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(queries.double(), rows.double(), compute_mode=mode)


def searches_with_faiss(device: str) -> bool:
    """Whether FAISS has a flat index on the device."""
    on_gpu = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    return device == "cpu" or on_gpu


def product(queries: Tensor, rows: Tensor) -> None:
    """The matrix product of the same operations, by itself."""
    for among in tiles(len(rows), ROWS):
        columns = rows[among].T
        for part in tiles(len(queries), QUERIES):
            torch.mm(queries[part], columns)


def split(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Halves [N, D] float16, high and low, that sum up to the rows."""
    high = rows.half()
    return high, (rows - high).half()


def split_product(queries: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor]) -> None:
    """The three products of halves: high with high, high with low, low with high."""
    for among in tiles(len(rows[0]), ROWS):
        for part in tiles(len(queries[0]), QUERIES):
            for left, right in ((0, 0), (0, 1), (1, 0)):
                torch.mm(queries[left][part], rows[right][among].T, out_dtype=torch.float32)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, rows=22_000, dim=1536)
    parser.add_argument("--queries", type=int, default=25_000)
    args = parser.parse_args()
    check_device(args.device)
    return args


if __name__ == "__main__":
    main()
