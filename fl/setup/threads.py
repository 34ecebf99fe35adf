"""A client's share of the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import torch
from threadpoolctl import threadpool_limits


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch, FAISS and NumPy use this many threads inside.

    Rounding in a matrix product depends on the number of threads: a client that always has the
    same number computes the same bank in every engine. And clients whose NumPy takes every core of
    a shared machine slow each other down: two at a time were five times slower each.
    """
    before, before_faiss = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
        faiss.omp_set_num_threads(before_faiss)
