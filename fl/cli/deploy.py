"""fedpatchcore deploy: the roles of a deployment as local processes, and runs on them."""

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
    from fl.deployment.registration import Place

HOME = Path(platformdirs.user_state_dir("fedpatchcore")) / "deployment"
PORT = 8000
ONLINE, OFFLINE = "online", "offline"  # what Flower says of a node; else "registered"

deployed = typer.Typer(no_args_is_help=True, help="The roles of a deployment, without containers.")

Data = Annotated[list[Path], typer.Option(help="a node's own data root; once for each node")]
Home = Annotated[Path, typer.Option(help="where the roles that run here keep state and logs")]
Certs = Annotated[Path | None, typer.Option(help="folder of `fedpatchcore certs`")]
LinkCerts = Annotated[Path | None, typer.Option(help="the SuperLink's folder of certificates")]
Address = Annotated[
    str, typer.Option("--superlink", metavar="HOST:PORT", help="in place of the one of --home")
]


@deployed.command()
def run(
    config: Config = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="SuperNodes; as many as --data where given")
    ] = 2,
    data: Data = [],  # noqa: B006
    tls: Annotated[
        bool, typer.Option("--tls", help="with certificates and keys, made anew")
    ] = False,
    set_: Sets = [],  # noqa: B006
    out: Out = None,
    resume: Resume = None,
) -> None:
    """Start a SuperLink and SuperNodes on this machine, run once, stop them."""
    from fl.cli.progress import ProgressView
    from fl.engines.launch import deploy
    from fl.setup.data import open_split

    own = [f"clients={len(data) or nodes}", f"data.shared={str(not data).lower()}"]
    settings = resolve(config, [*set_, *([] if resume else own)], out, resume=resume)
    if len(data) != (0 if settings.data_shared else settings.clients):
        raise UserError(
            f"--resume: that run had {settings.clients} nodes with data of their own; name as many "
            "--data, in the same order"
        )
    roots = [Path(absolute(root)) for root in data]
    for root in roots:  # here they can be looked at: no need to start anything to find one wrong
        open_split(settings, str(root))
    if not roots:
        show_partition(settings)
    folder = Path(settings.out)
    log: list[str] = []
    with ProgressView(folder, settings.clients):
        deploy(settings, roots, tls=tls, gpus=gpus_here(), show=log.append)
    show_results(folder)


@deployed.command("up")
def up_(
    nodes: Annotated[int, typer.Option(min=0, help="SuperNodes to start here")] = 2,
    data: Data = [],  # noqa: B006
    first: Annotated[int, typer.Option(min=0, help="number of the first node here")] = 0,
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="join this one; start only nodes here")
    ] = "",
    host: Annotated[str, typer.Option(help="address the SuperLink listens on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port the SuperLink listens on")] = PORT,
    certs: Certs = None,
    home: Home = HOME,
) -> None:
    """Start roles on this machine and leave them running: see status, submit and down."""
    from fl.deployment.roles import Plan, up

    count = len(data) or nodes
    configs: list[dict[str, Scalar]] = [{"partition-id": first + i} for i in range(count)]
    for node, root in zip(configs, data, strict=False):
        if not root.is_dir():
            raise UserError(f"--data {root} is not a folder")
        node["data-root"] = absolute(root)
    home = Path(absolute(home))
    plan = Plan(configs, superlink, host, port, absolute(certs) if certs else "", gpus=gpus_here())
    up(plan, home)
    status(home)


@deployed.command("down")
def down_(home: Home = HOME) -> None:
    """End the roles that `up` started on this machine."""
    from fl.deployment.roles import down

    ended = down(home)
    console.print(f"ended: {', '.join(ended)}" if ended else "nothing was running")


@deployed.command()
def status(home: Home = HOME) -> None:
    """The roles of this machine, and the nodes that the SuperLink knows."""
    from fl.deployment.registration import known_nodes
    from fl.deployment.roles import place_of, read_roles

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
    place = place_of(home)
    if place:
        known = Table("node", "state", "since", box=None)
        for node in known_nodes(place):
            last = node.last_deactivated_at if node.status == OFFLINE else node.last_activated_at
            known.add_row(node.name or str(node.node_id), node.status, last[:19].replace("T", " "))
        console.print(known)


@deployed.command("admit")
def admit_(superlink: Address = "", certs: LinkCerts = None, home: Home = HOME) -> None:
    """Let in the nodes whose public keys lie in the SuperLink's folder of certificates."""
    from fl.deployment.registration import admit

    new = admit(_place(home, superlink, certs))
    console.print(f"let in: {', '.join(new)}" if new else "all keys were known")


@deployed.command("expel")
def expel_(
    name: Annotated[str, typer.Argument(help="as status shows it, such as node-1")],
    superlink: Address = "",
    certs: LinkCerts = None,
    home: Home = HOME,
) -> None:
    """Let a node in no more: its key is refused from now on."""
    from fl.deployment.registration import expel

    expel(_place(home, superlink, certs), name)
    console.print(f"{name} is let in no more")


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
    """Run once on roles that are up; on the SuperLink's machine, where the results are left."""
    from fl.cli.progress import ProgressView
    from fl.deployment.registration import known_nodes
    from fl.engines.launch import submit_to

    place = _place(home, superlink, certs)
    online = [node for node in known_nodes(place) if node.status == ONLINE]
    own = ["data.shared=false", *set_]
    settings = resolve(config, own, out, resume=resume, clients=len(online))
    console.print(f"{len(online)} nodes are online, {settings.clients} are to take part")
    log: list[str] = []
    folder = Path(settings.out)
    with ProgressView(folder, settings.clients):
        submit_to(settings, place, show=log.append)
    show_results(folder)


def gpus_here() -> list[str]:
    """The GPUs of this machine by number, of which each local node gets one."""
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _place(home: Path, superlink: str, certs: Path | None) -> Place:
    from fl.deployment.registration import Place
    from fl.deployment.roles import place_of

    if superlink:
        return Place(superlink, absolute(certs) if certs else "")
    place = place_of(home)
    if place is None:
        raise UserError(
            f"no SuperLink was started from {home}: `fedpatchcore deploy up` first, or name one by "
            "--superlink"
        )
    return place
