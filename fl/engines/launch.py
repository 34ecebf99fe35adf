"""Start a run on the engine the settings name, and say how it ended."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fl.client_app import app as client_app
from fl.config import CHECKOUT, ConfigError, Scalar, Settings
from fl.deployment.certificates import make_certificates
from fl.deployment.registration import Place
from fl.deployment.roles import Plan, run_deployment, standing
from fl.engines.inline import run_inline
from fl.engines.processes import private_home
from fl.engines.ray import available_cpus, run_simulation
from fl.engines.submission import RunEnd, submit
from fl.server.federation import RoundFailed
from fl.server_app import app as server_app
from fl.workspace.directory import clear_scratch, locked
from src.errors import UserError

BASELINES = 4  # a run may take this many times its timeout: two exchanges, merge and baselines
LOG = "run.log"


class RunFailed(UserError):
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
    out = _prepared(settings)
    run = _inline if settings.engine == "inline" else _on_ray
    run(settings, out, show)
    return out


def deploy(
    settings: Settings,
    roots: Sequence[Path] = (),
    *,
    tls: bool = False,
    gpus: Sequence[str] = (),
    show: Callable[[str], None] | None = None,
) -> Path:
    """Run once on a SuperLink and SuperNodes, as local processes; returns the run directory.

    Args:
        settings: with `out` and `clients` set.
        roots: each node's own data; without, the nodes share the data root of the settings.
        tls: encrypt, and let in only nodes with a key; all made for this run.
        gpus: of this machine, which the nodes take in turn.
        show: gets each line of the log.

    Raises:
        RunFailed: the run failed; nothing of it is left running.
    """
    out = _prepared(settings)
    nodes: list[dict[str, Scalar]] = [{"partition-id": i} for i in range(settings.clients)]
    for node, root in zip(nodes, roots, strict=False):
        node["data-root"] = str(root)
    with private_home() as folder:
        if tls:
            make_certificates(folder, ["localhost"], range(len(nodes)))
        result = run_deployment(
            CHECKOUT,
            settings.flat(),
            Plan(nodes, certs=str(folder) if tls else "", gpus=gpus),
            log=out / LOG,
            deadline=BASELINES * settings.timeout,
            show=show,
        )
    _check(result)
    return out


def submit_to(
    settings: Settings, place: Place, *, show: Callable[[str], None] | None = None
) -> Path:
    """Run once on roles that are up; returns the run directory. As `deploy` otherwise."""
    out = _prepared(settings)
    serving = partial(standing, place=place)
    deadline = BASELINES * settings.timeout
    flat = settings.flat()
    _check(submit(CHECKOUT, flat, serving, log=out / LOG, deadline=deadline, show=show))
    return out


def _prepared(settings: Settings) -> Path:
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):  # by a run that goes on, it is not ours to clear
        clear_scratch(out)
    return out


def _check(result: RunEnd) -> None:
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
    _check(result)
