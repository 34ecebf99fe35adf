"""Run once on a deployment: on roles started for this run, or on a SuperLink that is up."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from fl.config import Scalar, Settings
from fl.deployment.certificates import make_certificates
from fl.deployment.plan import DeploymentPlan
from fl.deployment.roles import roles
from fl.engines.control import SuperLinkAddress
from fl.engines.launch import submit_settings
from fl.engines.processes import private_home


def deploy(
    settings: Settings, roots: Sequence[Path] = (), *, tls: bool = False, gpus: Sequence[str] = ()
) -> Path:
    """Run once on a SuperLink and SuperNodes, as local processes; returns the run directory.

    Args:
        settings: with `out` and `clients` set.
        roots: the nodes' own data roots; without them, all nodes use that of the settings.
        tls: encrypt, and let in only nodes with a key; certificates and keys last for this run.
        gpus: GPUs of this machine, which the nodes take in turn.

    Raises:
        RunFailed: the run failed; none of its processes is left.
    """
    nodes: list[dict[str, Scalar]] = [{"partition-id": i} for i in range(settings.clients)]
    for node, root in zip(nodes, roots, strict=False):
        node["data-root"] = str(root)
    with private_home() as folder:
        if tls:
            make_certificates(folder, ["localhost"], range(len(nodes)))
        plan = DeploymentPlan(nodes, certs=str(folder) if tls else "", gpus=gpus)
        return submit_settings(settings, partial(roles, plan=plan))


def submit_to(settings: Settings, superlink: SuperLinkAddress) -> Path:
    """Run once on a SuperLink that is up; returns the run directory.

    Raises:
        RunFailed: the run failed, or the SuperLink does not answer.
    """
    return submit_settings(settings, lambda home, deadline: nullcontext(superlink))
