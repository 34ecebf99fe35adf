"""The deployed roles as local processes: for one run, or left running until they are taken down.

result = run_deployment(Path("."), {"seed": 7}, Plan([{"partition-id": 0}]),
                        log=Path("run.log"), deadline=3600)
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from fl.config import ConfigError, Scalar
from fl.deployment.registration import Place, admit
from fl.engines.commands import (
    CERTIFICATE,
    NODE_KEY,
    serverapp_command,
    superlink_command,
    supernode_command,
)
from fl.engines.processes import POLL, EngineError, alive, end, end_family, free_port, start
from fl.engines.submission import RunEnd, Show, submit
from fl.engines.superlink import LOG, START_LIMIT, connect, healthy, serve

STATE = "roles.json"  # in the home: what runs here
DATABASE = "superlink.db"
CONNECTED = "SuperNode ID"  # in a SuperNode's log, once the SuperLink has let it in
NODE_LIMIT = 90.0  # seconds; a SuperLink takes a node that died for there for 60
NODE_PATIENCE = 15.0  # seconds; a node that lives, but is not in by then, may find no SuperLink
RETRY = 5.0  # seconds between two starts of a node
GRACE = 5.0  # seconds for a role to sign off; a SuperNode takes 1

LOOPBACK, EVERYWHERE = ("127.0.0.1", "localhost"), ("0.0.0.0",)  # noqa: S104 - behind the gate

NodeConfig = Mapping[str, Scalar]
NodeStart = Callable[[], "tuple[Role, subprocess.Popen[bytes]]"]


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

    def check(self) -> None:
        """Refuse a plan that would let strangers in, or the SuperLink's own machine out.

        Raises:
            ConfigError: a certificate or key that it needs is missing; it listens on one address
                that is not loopback, where the ServerApp and the command line do not reach it; or
                on all of them, and asks for no key.
        """
        if self.certs:
            needed = [f"{self.node_certs(config)}/{NODE_KEY}" for config in self.nodes]
            needed += [] if self.join else [f"{self.superlink_certs()}/{CERTIFICATE}"]
            for path in needed:
                if not Path(path).is_file():
                    raise ConfigError(f"--certs: {path} is missing; `fedpatchcore certs` makes it")
        if self.join or self.host in LOOPBACK:
            return
        if self.host not in EVERYWHERE:
            raise ConfigError(
                f"--host {self.host}: runs are submitted on loopback, so the SuperLink listens "
                "there alone (127.0.0.1) or everywhere (0.0.0.0); a firewall can be choosier"
            )
        if not self.certs:
            raise ConfigError(
                f"--host {self.host}: other machines could reach the SuperLink, so it needs --certs"
            )

    def node_certs(self, config: NodeConfig) -> str:
        """A node's folder of certificates."""
        return f"{self.certs}/node-{config['partition-id']}" if self.certs else ""


@dataclass(frozen=True)
class Role:
    """A role that was started here; `created` tells its process from another with its number."""

    name: str
    pid: int
    created: float
    port: int
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
    plan: Plan,
    *,
    log: Path,
    deadline: float,
    show: Show | None = None,
) -> RunEnd:
    """Start the roles, run the Flower app of a folder on them once, stop them.

    Apart from the plan, as `submit`.
    """
    serving = partial(roles, plan=plan)
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


def up(plan: Plan, home: Path) -> list[Role]:
    """Start the roles of a plan, and leave them running.

    Raises:
        ConfigError: the plan would let strangers in.
        EngineError: some run here already, or one does not start; then none is left.
    """
    running = [role.name for role in read_roles(home) if role.process()]
    if running:
        raise EngineError("not started", f"there run already: {', '.join(running)}; take them down")
    plan.check()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    found: dict[str, Role] = {}
    try:
        for role, _ in _start_all(home, plan, time.monotonic() + START_LIMIT):
            found[role.name] = role
            _write_state(home, plan, list(found.values()))
    except BaseException:
        down(home)
        raise
    return list(found.values())


def down(home: Path) -> list[str]:
    """End what `up` started here; returns the names of what still ran."""
    ended = []
    for role in reversed(read_roles(home)):
        if role.process():
            ended.append(role.name)
        if role.process() or not psutil.pid_exists(role.pid):  # else its number is another's now
            end_family(role.pid, GRACE)
    (home / STATE).unlink(missing_ok=True)
    return ended


def read_roles(home: Path) -> list[Role]:
    """What `up` started here, whether it still runs or not."""
    return [Role(**role) for role in _read_state(home).get("roles", [])]


def place_of(home: Path) -> Place | None:
    """The SuperLink that `up` started here, if it did."""
    found = _read_state(home).get("superlink")
    return Place(**found) if found else None


@contextmanager
def standing(home: Path, ends: float, place: Place) -> Iterator[None]:
    """A SuperLink that runs already, for `submit`: nothing is started, nothing stopped."""
    connect(home, place.address, place.certs)
    yield


def _read_state(home: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((home / STATE).read_text())
        return state
    except FileNotFoundError:
        return {}


def _write_state(home: Path, plan: Plan, found: Sequence[Role]) -> None:
    place = None
    if not plan.join:
        place = asdict(Place(f"127.0.0.1:{found[0].port}", plan.superlink_certs()))
    state = {"superlink": place, "roles": [asdict(role) for role in found]}
    (home / STATE).write_text(json.dumps(state, indent=2) + "\n")


def _start_all(
    home: Path, plan: Plan, ends: float
) -> Iterator[tuple[Role, subprocess.Popen[bytes]]]:
    """Start the roles one by one, the SuperLink first; a node that is started again comes twice."""
    address = plan.join
    if not address:
        certs = plan.superlink_certs()
        port = plan.port or free_port()
        if healthy(port, certs):
            raise EngineError("not started", f"another SuperLink answers on port {port}")
        address = f"127.0.0.1:{port}"
        command = superlink_command(plan.host, port, database=str(home / DATABASE), certs=certs)
        process = serve(command, home, port, ends, certs)
        yield _role("superlink", process, port, home / LOG), process
        admit(Place(address, certs))
        output = home / "serverapp.log"
        process = start(serverapp_command(address, certs=certs), home, output)
        yield _role("serverapp", process, 0, output), process
    nodes = []
    for number in range(len(plan.nodes)):
        go = _node_start(home, plan, address, number)
        role, process = go()
        yield role, process
        nodes.append((go, role, process))
    for go, role, process in nodes:
        yield from _until_let_in(go, role, process)


def _node_start(home: Path, plan: Plan, address: str, number: int) -> NodeStart:
    """What starts a node of the plan, each time with the same home and port."""
    config = plan.nodes[number]
    name = f"supernode-{config['partition-id']}"
    own, output, port = home / name, home / f"{name}.log", free_port()
    own.mkdir(exist_ok=True)  # each node has a home of its own, as on a machine of its own
    command = supernode_command(address, port, config, certs=plan.node_certs(config))
    gpu = {"CUDA_VISIBLE_DEVICES": plan.gpus[number % len(plan.gpus)]} if plan.gpus else {}

    def go() -> tuple[Role, subprocess.Popen[bytes]]:
        process = start(command, own, output, gpu)
        return _role(name, process, port, output), process

    return go


def _until_let_in(
    go: NodeStart, role: Role, process: subprocess.Popen[bytes]
) -> Iterator[tuple[Role, subprocess.Popen[bytes]]]:
    """Wait until a node is let in.

    One that was refused, as it is for a minute after one with its key has died, is started again;
    one that finds no SuperLink goes on looking by itself.
    """
    began = time.monotonic()
    log = Path(role.log)
    while CONNECTED not in log.read_text(errors="replace"):
        waited = time.monotonic() - began
        if process.poll() is None:
            if waited > NODE_PATIENCE:
                return
            time.sleep(POLL)
        elif waited > NODE_LIMIT:
            raise EngineError(
                "not started", f"{role.name} is refused, or ends by itself: see {log}"
            )
        else:
            end(process)  # and what it left
            time.sleep(RETRY)
            role, process = go()
            yield role, process


def _role(name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> Role:
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess as error:
        raise EngineError("not started", f"{name} ended at once: see {log}") from error
    return Role(name, process.pid, created, port, str(log))
