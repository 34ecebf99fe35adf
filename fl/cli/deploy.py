"""fedpatchcore deploy: start the roles of a deployment as local processes, and run on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import platformdirs
import typer
from rich.table import Table

from fl.cli.terminal import (
    Config,
    Out,
    Resume,
    Sets,
    absolute,
    console,
    resolve,
    show_partition,
    show_results,
)
from src.errors import UserError

if TYPE_CHECKING:
    from fl.config import Scalar
    from fl.engines.control import SuperLinkAddress

HOME = Path(platformdirs.user_state_dir("fedpatchcore")) / "deployment"
PORT = 8000
ONLINE, OFFLINE = "online", "offline"  # states of a node; the third is "registered"

deployed = typer.Typer(no_args_is_help=True, help="Run a deployment without containers.")

Data = Annotated[list[Path], typer.Option(help="data root of one node; repeat for each node")]
Home = Annotated[Path, typer.Option(help="folder for state and logs of the roles here")]
Certs = Annotated[Path | None, typer.Option(help="folder made by `fedpatchcore certs`")]
LinkCerts = Annotated[Path | None, typer.Option(help="the SuperLink's folder of certificates")]
Address = Annotated[
    str,
    typer.Option("--superlink", metavar="HOST:PORT", help="in place of the one in --home"),
]


@deployed.command()
def run(
    config: Config = None,
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes; ignored with --data")] = 2,
    data: Data = [],  # noqa: B006
    tls: Annotated[bool, typer.Option("--tls", help="with new certificates and keys")] = False,
    set_: Sets = [],  # noqa: B006
    out: Out = None,
    resume: Resume = None,
) -> None:
    """Start a SuperLink and SuperNodes on this machine, run once, and stop them."""
    from fl.cli.progress import ProgressView
    from fl.deployment.run import deploy
    from fl.setup.data import open_split

    own = [f"clients={len(data) or nodes}", f"data.shared={str(not data).lower()}"]
    settings = resolve(config, [*set_, *([] if resume else own)], out, resume=resume)
    if len(data) != (0 if settings.data_shared else settings.clients):
        raise UserError(
            f"--resume: that run had {settings.clients} nodes with data of their own; give as many "
            "--data options, in the same order"
        )
    roots = [Path(absolute(root)) for root in data]
    for root in roots:  # find mistakes before anything starts
        open_split(settings, str(root))
    if not roots:
        show_partition(settings)
    folder = Path(settings.out)
    with ProgressView(folder, settings.clients):
        deploy(settings, roots, tls=tls, gpus=gpus_here())
    show_results(folder)


@deployed.command("up")
def up_(
    nodes: Annotated[int, typer.Option(min=0, help="SuperNodes here; ignored with --data")] = 2,
    data: Data = [],  # noqa: B006
    first: Annotated[int, typer.Option(min=0, help="number of the first node on this machine")] = 0,
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="join this SuperLink; start only nodes")
    ] = "",
    host: Annotated[str, typer.Option(help="address the SuperLink listens on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port the SuperLink listens on")] = PORT,
    certs: Certs = None,
    home: Home = HOME,
) -> None:
    """Start roles on this machine and leave them running; see status, submit and down."""
    from fl.deployment.plan import DeploymentPlan
    from fl.deployment.roles import up

    count = len(data) or nodes
    configs: list[dict[str, Scalar]] = [{"partition-id": first + i} for i in range(count)]
    for node, root in zip(configs, data, strict=False):
        if not root.is_dir():
            raise UserError(f"--data {root} is not a folder")
        node["data-root"] = absolute(root)
    home = Path(absolute(home))
    folder = absolute(certs) if certs else ""
    up(DeploymentPlan(configs, superlink, host, port, folder, gpus_here()), home)
    status(home)


@deployed.command("down")
def down_(home: Home = HOME) -> None:
    """Stop the roles that `up` started on this machine."""
    from fl.deployment.roles import down

    ended = down(home)
    console.print(f"stopped: {', '.join(ended)}" if ended else "nothing was running")


@deployed.command()
def status(home: Home = HOME) -> None:
    """Show the roles on this machine and the nodes that the SuperLink knows."""
    from fl.deployment.registration import known_nodes
    from fl.deployment.roles import read_roles, superlink_of

    table = Table("role", "state", "pid", "MiB", "port", box=None)
    for role in read_roles(home):
        process = role.process()
        memory = f"{process.memory_info().rss / 2**20:.0f}" if process else ""
        state = "running" if process else "[red]gone[/]"
        table.add_row(role.name, state, str(role.pid), memory, str(role.port or ""))
    if not table.row_count:
        console.print("nothing runs here")
        return
    console.print(table)
    console.print(f"logs: {absolute(home)}", soft_wrap=True, highlight=False)
    superlink = superlink_of(home)
    if superlink:
        nodes = Table("node", "state", "since", box=None)
        for node in known_nodes(superlink):
            since = node.last_deactivated_at if node.status == OFFLINE else node.last_activated_at
            nodes.add_row(node.name or str(node.node_id), node.status, since[:19].replace("T", " "))
        console.print(nodes)


@deployed.command()
def admit(superlink: Address = "", certs: LinkCerts = None, home: Home = HOME) -> None:
    """Register the nodes whose public keys are in the SuperLink's folder of certificates."""
    from fl.deployment.registration import register_nodes

    new = register_nodes(_superlink(home, superlink, certs))
    console.print(f"registered: {', '.join(new)}" if new else "all keys are registered already")


@deployed.command()
def expel(
    name: Annotated[str, typer.Argument(help="its name in `status`, such as node-1")],
    superlink: Address = "",
    certs: LinkCerts = None,
    home: Home = HOME,
) -> None:
    """Disconnect a node for good: the SuperLink never accepts its key again."""
    from fl.deployment.registration import unregister_node

    unregister_node(_superlink(home, superlink, certs), name)
    console.print(f"{name} is unregistered; its key stays refused")


@deployed.command()
def submit(
    config: Config = None,
    set_: Sets = [],  # noqa: B006
    superlink: Address = "",
    certs: LinkCerts = None,
    home: Home = HOME,
    out: Out = None,
    resume: Resume = None,
) -> None:
    """Run once on a SuperLink that is up; works on its machine and leaves the results there."""
    from fl.cli.progress import ProgressView
    from fl.deployment.registration import known_nodes
    from fl.deployment.run import submit_to

    address = _superlink(home, superlink, certs)
    online = [node for node in known_nodes(address) if node.status == ONLINE]
    own = ["data.shared=false", *set_]
    settings = resolve(config, own, out, resume=resume, clients=len(online))
    console.print(f"{len(online)} nodes are online, {settings.clients} take part")
    folder = Path(settings.out)
    with ProgressView(folder, settings.clients):
        submit_to(settings, address)
    show_results(folder)


def gpus_here() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES numbers them."""
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _superlink(home: Path, address: str, certs: Path | None) -> SuperLinkAddress:
    from fl.deployment.roles import superlink_of
    from fl.engines.control import SuperLinkAddress

    if address:
        return SuperLinkAddress(address, absolute(certs) if certs else "")
    superlink = superlink_of(home)
    if superlink is None:
        raise UserError(
            f"no SuperLink was started from {home}: run `fedpatchcore deploy up` first, or name "
            "one with --superlink"
        )
    return superlink
