"""Run once on a deployment."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fl.config.schema import CHECKOUT, Scalar, Settings
from fl.deployment.certificates import make_certificates
from fl.deployment.plan import Plan
from fl.deployment.registration import Place
from fl.deployment.roles import run_deployment, standing
from fl.engines.launch import BASELINES, LOG, check, prepared
from fl.engines.processes import private_home
from fl.engines.submission import submit


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
    out = prepared(settings)
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
    check(result)
    return out


def submit_to(
    settings: Settings, place: Place, *, show: Callable[[str], None] | None = None
) -> Path:
    """Run once on roles that are up; returns the run directory. As `deploy` otherwise."""
    out = prepared(settings)
    serving = partial(standing, place=place)
    deadline = BASELINES * settings.timeout
    flat = settings.flat()
    check(submit(CHECKOUT, flat, serving, log=out / LOG, deadline=deadline, show=show))
    return out
