"""Flower's simulation engine, which runs on Ray."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.proto.federation_config_pb2 import SimulationConfig

from fl.engines.commands import superlink_command
from fl.engines.control import SuperLinkAddress
from fl.engines.processes import end, free_port
from fl.engines.superlink import serve


@contextmanager
def simulation_superlink(home: Path, deadline: float) -> Iterator[SuperLinkAddress]:
    """Run a SuperLink for simulations on this machine until the block is left.

    Args:
        home: the folder for its state.
        deadline: the time.monotonic() by which it must answer.

    Raises:
        EngineError: it does not start.
    """
    port = free_port()
    process = serve(superlink_command("127.0.0.1", port, simulation=True), home, port, deadline)
    try:
        yield SuperLinkAddress(f"127.0.0.1:{port}")
    finally:
        end(process)


def simulation_config(clients: int, cpus: int, gpus: float) -> SimulationConfig:
    """Flower's settings for a simulation in which each client takes `cpus` CPUs and `gpus` GPUs.

    A fraction of a GPU shares it; 0 hides all GPUs. Ray starts an actor for each of its CPUs, so it
    gets no more than the clients can use.
    """
    return SimulationConfig(
        num_supernodes=clients,
        client_resources_num_cpus=cpus,
        client_resources_num_gpus=gpus,
        init_args_num_cpus=min(available_cpus(), clients * cpus),
    )


def available_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs that this process may use: its affinity, or its container's quota if that is less."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cpus = min(cpus, max(1, int(limit) // int(period)))
    return cpus
