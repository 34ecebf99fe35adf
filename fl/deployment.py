"""The deployed roles as local processes: for one run, or left running until they are taken down.

result = run_deployment(Path("."), {"seed": 7}, [{"partition-id": 0}, {"partition-id": 1}],
log=Path("run.log"), deadline=3600)
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import psutil

from fl.config import Scalar
from fl.processes import EngineError, alive, ask, end, end_family, free_port, start
from fl.roles import serverapp_command, superlink_command, supernode_command
from fl.submission import RunEnd, Show, submit
from fl.superlink import CONNECTION, LOG, START_LIMIT, connect, healthy, serve

STATE = "roles.json"  # in the home: what runs here
DATABASE = "superlink.db"

NodeConfig = Mapping[str, Scalar]


@dataclass(frozen=True)
class Plan:
    """Which roles are to run on this machine.

    Attributes:
        nodes: the configuration of each SuperNode here: its partition-id, and data-root where its
            data are its own.
        join: host:port of a SuperLink elsewhere; "" starts one here, and the ServerApp beside it.
        host, port: where the SuperLink listens; port 0 takes a free one.
        certs: folder that `make_certificates` filled; "" goes without TLS and keys.
        gpus: of this machine, as CUDA_VISIBLE_DEVICES names them; the nodes take them in turn.
    """

    nodes: Sequence[NodeConfig]
    join: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    certs: str = ""
    gpus: Sequence[str] = field(default_factory=tuple)

    def superlink_certs(self) -> str:
        """The SuperLink's folder of certificates."""
        return f"{self.certs}/superlink" if self.certs else ""

    def node_certs(self, config: NodeConfig) -> str:
        """A node's folder of certificates."""
        return f"{self.certs}/node-{config['partition-id']}" if self.certs else ""


@dataclass(frozen=True)
class Role:
    """A role that was started here; `created` tells its process from another with its number."""

    name: str
    pid: int
    created: float
    address: str
    log: str

    def process(self) -> psutil.Process | None:
        """Its process, while it lives."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) < 1 and alive(process):
                return process
        return None


def run_deployment(
    app_dir: Path,
    run_config: Mapping[str, Scalar],
    nodes: Sequence[NodeConfig],
    *,
    certs: str = "",
    gpus: Sequence[str] = (),
    log: Path,
    deadline: float,
    show: Show | None = None,
) -> RunEnd:
    """Start the roles, run the Flower app of a folder on them once, stop them.

    `nodes`, `certs` and `gpus` are as in `Plan`, the rest as for `submit`.
    """
    serving = partial(roles, plan=Plan(nodes, certs=certs, gpus=gpus))
    return submit(app_dir, run_config, serving, log=log, deadline=deadline, show=show)


@contextmanager
def roles(home: Path, ends: float, plan: Plan) -> Iterator[None]:
    """The roles of a plan, until the block is left.

    `ends` is a time of time.monotonic. Raises EngineError when a role does not start.
    """
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _, process in _start_all(home, plan, ends):
            started.append(process)
        yield
    finally:
        for process in reversed(started):
            end(process)


@contextmanager
def standing(home: Path, ends: float, address: str, certs: str) -> Iterator[None]:
    """A SuperLink that runs already, for `submit`: nothing is started, nothing stopped."""
    connect(home, address, certs)
    yield


def up(plan: Plan, home: Path) -> list[Role]:
    """Start the roles of a plan, and leave them running.

    Raises:
        EngineError: some run here already, or one does not start; then none is left.
    """
    running = [role.name for role in read_roles(home) if role.process()]
    if running:
        raise EngineError("not started", f"there run already: {', '.join(running)}; take them down")
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    found: list[Role] = []
    try:
        for role, _ in _start_all(home, plan, time.monotonic() + START_LIMIT):
            found.append(role)
            _write_roles(home, found)
    except BaseException:
        down(home)
        raise
    return found


def down(home: Path) -> list[str]:
    """End what `up` started here; returns the names of what still ran."""
    ended = []
    for role in reversed(read_roles(home)):
        process = role.process()
        if process:
            end_family(process)
            ended.append(role.name)
    (home / STATE).unlink(missing_ok=True)
    return ended


def read_roles(home: Path) -> list[Role]:
    """What `up` started here, whether it still runs or not."""
    try:
        return [Role(**role) for role in json.loads((home / STATE).read_text())]
    except FileNotFoundError:
        return []


def known_nodes(home: Path) -> list[dict[str, str]]:
    """The SuperNodes that the SuperLink of this home knows: node-id, name, status, ..."""
    _, said = ask(["flwr", "supernode", "list", CONNECTION, "--format", "json"], home)
    try:
        found: list[dict[str, str]] = json.loads(said)["nodes"]
        return found
    except (ValueError, LookupError) as error:
        raise EngineError("unknown", f"the SuperLink does not answer: {said.strip()}") from error


def _write_roles(home: Path, found: Sequence[Role]) -> None:
    (home / STATE).write_text(json.dumps([asdict(role) for role in found], indent=2) + "\n")


def _start_all(
    home: Path, plan: Plan, ends: float
) -> Iterator[tuple[Role, subprocess.Popen[bytes]]]:
    """Start the roles one by one, the SuperLink first."""
    address = plan.join
    if not address:
        certs = plan.superlink_certs()
        port = plan.port or free_port()
        if healthy(port, certs):
            raise EngineError("not started", f"another SuperLink answers on port {port}")
        address = f"127.0.0.1:{port}"
        command = superlink_command(plan.host, port, database=str(home / DATABASE), certs=certs)
        process = serve(command, home, port, ends, certs)
        yield _role("superlink", process, f"{plan.host}:{port}", home / LOG), process
        _let_in(certs, home)
        output = home / "serverapp.log"
        process = start(serverapp_command(address, certs=certs), home, output)
        yield _role("serverapp", process, "", output), process
    for place, config in enumerate(plan.nodes):
        name = f"supernode-{config['partition-id']}"
        own, output = home / name, home / f"{name}.log"
        own.mkdir(exist_ok=True)  # each node has a home of its own, as on a machine of its own
        port = free_port()
        command = supernode_command(address, port, config, certs=plan.node_certs(config))
        gpu = {"CUDA_VISIBLE_DEVICES": plan.gpus[place % len(plan.gpus)]} if plan.gpus else {}
        process = start(command, own, output, gpu)
        yield _role(name, process, f"127.0.0.1:{port}", output), process


def _role(name: str, process: subprocess.Popen[bytes], address: str, log: Path) -> Role:
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess as error:
        raise EngineError("not started", f"{name} ended at once: see {log}") from error
    return Role(name, process.pid, created, address, str(log))


def _let_in(certs: str, home: Path) -> None:
    """Register the public keys that lie in the SuperLink's folder; those known already stay."""
    for key in sorted(Path(certs).glob("node-*.pub")) if certs else []:
        command = ["flwr", "supernode", "register", str(key), CONNECTION, "--name", key.stem]
        _, said = ask(command, home)
        if not re.search("registered successfully|already", said, re.IGNORECASE):
            raise EngineError("not started", f"{key} was not registered: {said.strip()}")
