"""Shared by the benchmarks: the command line, time and memory, the table and the JSON line."""

import argparse
import ctypes
import json
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import platformdirs
import torch

from benchmarks.features import SETS

Result = TypeVar("Result")


def command_line(doc: str, rows: int, dim: int) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks, and a benchmark's default sizes."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--dim", type=int, default=dim, help="ignored for mtd")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--features", choices=SETS, default="synthetic")
    parser.add_argument("--data", type=Path, help="Magnetic Tile Defects in MVTec layout, for mtd")
    parser.add_argument("--cache", default=platformdirs.user_cache_dir("fedpatchcore"))
    return parser


def check_device(device: str) -> None:
    """Check that the device exists.

    Raises:
        SystemExit: this machine does not have the GPU.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"--device {device}: this machine has no GPU")


def median_seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of `repeats` calls after a warm-up call; a single call has no warm-up.

    The time includes work queued on a GPU.
    """
    if repeats > 1:
        work()
    times = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def extra_memory(work: Callable[[], Result], device: str) -> tuple[Result, int | None]:
    """Result of a call, and its peak memory in bytes beyond the memory in use before it.

    Counts torch's allocations on a GPU, and the process's resident memory on a CPU; None if the
    system does not report it.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # so that memory freed earlier is not reused unnoticed
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak (man proc)
        before = _resident("VmRSS")
        result = work()
        return result, _resident("VmHWM") - before
    return work(), None


def keep_freed_memory() -> None:
    """From now on the process reuses the memory that it frees, whatever the size.

    glibc returns blocks above 32 MiB to the system at once, so a loop that allocates and frees such
    a matrix would be timed for its page faults. A loop that also keeps a small block each time
    would cut it from the freed matrix, which then no longer fits: free small blocks prevent that.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            library.mallopt(option, value)
        library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        for block in [library.malloc(256) for _ in range(200_000)][::2]:
            library.free(block)


def percent(part: int | None, whole: int) -> float | None:
    """A share of bytes in percent."""
    return None if part is None else 100 * part / whole


def environment(args: argparse.Namespace) -> dict[str, object]:
    """Machine, versions and options of a benchmark, for its JSON line."""
    return {
        "device": device_name(args.device),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "features": args.features,
        "repeats": args.repeats,
    }


def report(title: str, measured: dict[str, dict[str, float]], result: dict[str, object]) -> None:
    """Print the table of measurements, the single results, and everything as JSON.

    Args:
        title: heading of the table.
        measured: row name -> column name -> value.
        result: results that are not in the table.
    """
    columns = list(dict.fromkeys(column for row in measured.values() for column in row))
    print(title)
    print(" " * 16 + "".join(f"{column:>14}" for column in columns))
    for name, row in measured.items():
        cells = (f"{row[column]:.6g}" if column in row else "" for column in columns)
        print(f"{name:16}" + "".join(f"{cell:>14}" for cell in cells))
    for name, value in result.items():
        print(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
    print(json.dumps({**result, "measured": measured}))


def speed(seconds: float, ours: float, operations: float) -> dict[str, float]:
    """The table's columns of a measured time."""
    return {
        "seconds": seconds,
        "times_ours": seconds / ours,
        "tflops": operations / seconds / 1e12,
    }


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"{name}:\s+(\d+)", status)[0])


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        return names[0] if names else platform.machine()
    return platform.processor()
