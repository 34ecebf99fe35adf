"""Start a run on the engine the settings name, and say how it ended."""

import logging
from collections.abc import Callable
from pathlib import Path

from fl.client_app import app as client_app
from fl.config.schema import CHECKOUT, ConfigError, Settings
from fl.engines.inline import run_inline
from fl.engines.ray import available_cpus, run_simulation
from fl.engines.submission import RunEnd
from fl.server.federation import RoundFailed
from fl.server_app import app as server_app
from fl.workspace.directory import clear_scratch, locked

BASELINES = 4  # a run may take this many times its timeout: two exchanges, merge and baselines
LOG = "run.log"


class RunFailed(RuntimeError):
    """A run that did not end well; the message is the app's own."""


def launch(settings: Settings, show: Callable[[str], None] | None = None) -> Path:
    """Run to the end; returns the run directory.

    Args:
        settings: with `out` and `clients` set.
        show: gets each line of the engine's log.

    Raises:
        ConfigError: more CPUs a client than there are.
        RunFailed: the run failed; nothing of it is left running.
    """
    out = prepared(settings)
    run = _inline if settings.engine == "inline" else _on_ray
    run(settings, out, show)
    return out


def prepared(settings: Settings) -> Path:
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):  # by a run that goes on, it is not ours to clear
        clear_scratch(out)
    return out


def check(result: RunEnd) -> None:
    if not result.ok:
        raise RunFailed(f"{result.error or result.status}\n(log: {result.log})")


def _inline(settings: Settings, out: Path, show: Callable[[str], None] | None) -> None:
    nodes = [
        {"partition-id": i, "num-partitions": settings.clients} for i in range(settings.clients)
    ]
    quiet = logging.getLogger("flwr")
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        run_inline(server_app, client_app, settings.flat(), nodes)
    except RoundFailed as error:
        raise RunFailed(str(error)) from error
    finally:
        quiet.setLevel(before)


def _on_ray(settings: Settings, out: Path, show: Callable[[str], None] | None) -> None:
    if settings.cpus_per_client > available_cpus():
        raise ConfigError(
            f"cpus-per-client = {settings.cpus_per_client}: there are {available_cpus()} CPUs here"
        )
    result = run_simulation(
        CHECKOUT,
        settings.flat(),
        supernodes=settings.clients,
        cpus=settings.cpus_per_client,
        gpus=settings.gpus_per_client,
        log=out / LOG,
        deadline=BASELINES * settings.timeout,
        show=show,
    )
    check(result)
