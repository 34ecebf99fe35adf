"""Run the Flower app on Flower's own simulation engine, which is Ray.

The apps are those that `flwr run` runs, and `flwr run` submits them, to a SuperLink of our own.

    result = run_simulation(Path("."), {"seed": 7}, supernodes=4, cpus=1, gpus=0.25,
                            log=Path("run.log"), deadline=3600)
"""

import os
from collections.abc import Mapping
from pathlib import Path

from fl.engines.submission import RunEnd, Scalar, Show, submit
from fl.engines.superlink import superlink


def run_simulation(
    app_dir: Path,
    run_config: Mapping[str, Scalar],
    *,
    supernodes: int,
    cpus: int,
    gpus: float,
    log: Path,
    deadline: float,
    show: Show | None = None,
) -> RunEnd:
    """Run the Flower app of a folder with that many simulated clients and wait for its end.

    Each client takes `cpus` CPUs and `gpus` GPUs (a fraction shares one; 0 hides them all), and as
    many run at a time as fit the machine. The rest is as for `submit`.

    Raises:
        ValueError: arguments that make no sense. Whatever happens to the run is in the result.
    """
    if supernodes < 1 or cpus < 1 or gpus < 0:
        raise ValueError(
            "a simulation needs at least one client, a CPU for each and no negative share of a "
            f"GPU; got supernodes={supernodes}, cpus={cpus}, gpus={gpus}"
        )
    return submit(
        app_dir,
        run_config,
        superlink,
        federation=_federation(supernodes, cpus, gpus),
        log=log,
        deadline=deadline,
        show=show,
    )


def available_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs that this process may use: its affinity, or its container's quota where that is less."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cpus = min(cpus, max(1, int(limit) // int(period)))
    return cpus


def _federation(supernodes: int, cpus: int, gpus: float) -> str:
    """Flower's settings of the simulation, as `flwr run` takes them.

    Ray would start an actor on every CPU that it finds, needed or not: it is told of no more than
    the clients can use.
    """
    return (
        f"num-supernodes={supernodes} client-resources-num-cpus={cpus} "
        f"client-resources-num-gpus={float(gpus)} "
        f"init-args-num-cpus={min(available_cpus(), supernodes * cpus)}"
    )
