"""What the benchmarks share: the command line, time and memory, the table and the JSON line."""

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
    """A parser of the options that all benchmarks take, with a benchmark's own sizes."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--dim", type=int, default=dim, help="mtd has its own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--features", choices=SETS, default="synthetic")
    parser.add_argument("--data", type=Path, help="Magnetic Tile Defects in MVTec layout, for mtd")
    parser.add_argument("--cache", default=platformdirs.user_cache_dir("fedpatchcore"))
    return parser


def check_device(device: str) -> None:
    """Leave with a sentence where the device is not there.

    Raises:
        SystemExit: a GPU that this machine does not have.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"--device {device}: there is no GPU here")


def median_seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of `repeats` calls, after one that is not timed; a single call has none before.

    Work queued on a GPU counts until it is done.
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
    """What a call gives, and the bytes it had in use at most beyond those before it.

    On a GPU those that torch allocated there; on a CPU the process's own, None where the system
    does not say.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # so that what was freed before is not used unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man proc)
        before = _resident("VmRSS")
        result = work()
        return result, _resident("VmHWM") - before
    return work(), None


def keep_freed_memory() -> None:
    """From here on the process uses memory again that it freed, whatever the size of the piece.

    glibc gives pieces above 32 MiB back to the system at once: a loop that makes and frees a
    matrix of that size would be timed for its page faults. One that also keeps a small piece each
    time would keep cutting it from the freed matrix, which then no longer fits there: the small
    ones find room of their own.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            library.mallopt(option, value)
        library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        for piece in [library.malloc(256) for _ in range(200_000)][::2]:
            library.free(piece)


def percent(part: int | None, whole: int) -> float | None:
    """A share of some bytes."""
    return None if part is None else 100 * part / whole


def setting(args: argparse.Namespace) -> dict[str, object]:
    """Where and with what a benchmark ran, for its JSON line."""
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
    """Print the table of what was measured, the single figures, and everything as JSON.

    Args:
        measured: for each name its figures, by column.
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


def figures(seconds: float, ours: float, operations: float) -> dict[str, float]:
    """The columns that everything timed has."""
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
