"""Start a run on the engine that its settings name, and wait for its end."""

import logging
from pathlib import Path

from flwr.proto.federation_config_pb2 import SimulationConfig

from fl.client_app import app as client_app
from fl.config import CHECKOUT, ConfigError, Settings
from fl.engines.inline import run_inline
from fl.engines.ray import available_cpus, simulation_config, simulation_superlink
from fl.engines.submission import RunFailed, Serving, submit
from fl.server.federation import RoundFailed
from fl.server_app import app as server_app
from fl.workspace.directory import clear_scratch, locked

STAGES = 4  # a run may take this many timeouts: two exchanges, the merge and the baselines
LOG = "run.log"


def launch(settings: Settings) -> Path:
    """Run a simulation to its end; returns the run directory.

    Args:
        settings: with `out` and `clients` set.

    Raises:
        ConfigError: a client needs more CPUs than there are.
        RunFailed: the run failed; none of its processes is left.
    """
    if settings.engine == "inline":
        return _run_inline(settings)
    cpus = settings.cpus_per_client
    if cpus > available_cpus():
        raise ConfigError(f"cpus-per-client = {cpus}: this machine has {available_cpus()} CPUs")
    simulation = simulation_config(settings.clients, cpus, settings.gpus_per_client)
    return submit_settings(settings, simulation_superlink, simulation)


def submit_settings(
    settings: Settings, serving: Serving, simulation: SimulationConfig | None = None
) -> Path:
    """Submit this project's app with these settings; returns the run directory. See `submit`."""
    out = _prepare(settings)
    submit(
        CHECKOUT,
        settings.flat(),
        serving,
        simulation=simulation,
        log=out / LOG,
        timeout=STAGES * settings.timeout,
    )
    return out


def _run_inline(settings: Settings) -> Path:
    out = _prepare(settings)
    nodes = [
        {"partition-id": i, "num-partitions": settings.clients} for i in range(settings.clients)
    ]
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        run_inline(server_app, client_app, settings.flat(), nodes)
    except RoundFailed as error:
        raise RunFailed(str(error)) from error
    finally:
        logger.setLevel(level)
    return out


def _prepare(settings: Settings) -> Path:
    """Make the run directory, or clear the scratch files of an earlier run in it."""
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):  # a run that is still going on keeps its files
        clear_scratch(out)
    return out
