"""Start the roles of a deployment as local processes, for one run or until they are taken down."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fl.deployment.plan import DeploymentPlan
from fl.deployment.registration import register_nodes
from fl.engines.commands import serverapp_command, superlink_command, supernode_command
from fl.engines.control import SuperLinkAddress
from fl.engines.processes import POLL, EngineError, alive, end, end_tree, free_port, start
from fl.engines.superlink import LOG, healthy, serve

STATE = "roles.json"  # in the home: the roles that run here
DATABASE = "superlink.db"
CONNECTED = "SuperNode ID"  # a SuperNode logs this once the SuperLink has accepted it
NODE_LIMIT = 90.0  # seconds; a SuperLink counts a node that died as connected for 60
NODE_PATIENCE = 15.0  # seconds; a living node that is not connected by then finds no SuperLink
RETRY = 5.0  # seconds between two starts of a node
GRACE = 5.0  # seconds for a role to sign off; a SuperNode takes 1


@dataclass(frozen=True)
class Role:
    """A role that runs as a process here."""

    name: str
    pid: int
    created: float  # tells the process from a later one with its pid
    port: int  # 0 for a role without one
    log: str

    def process(self) -> psutil.Process | None:
        """Its process while it is alive."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) < 1 and alive(process):
                return process
        return None


@dataclass
class _Node:
    """A SuperNode of the plan; each start has the same home and port."""

    name: str
    command: list[str]
    home: Path
    log: Path
    port: int
    env: dict[str, str] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[bytes]:
        return start(self.command, self.home, self.log, self.env)

    def role(self, process: subprocess.Popen[bytes]) -> Role:
        return _role(self.name, process, self.port, self.log)


@contextmanager
def roles(home: Path, deadline: float, plan: DeploymentPlan) -> Iterator[SuperLinkAddress]:
    """Run the roles of a plan, with a SuperLink here, until the block is left. See `up`."""
    up(plan, home, deadline)
    try:
        superlink = superlink_of(home)
        assert superlink is not None
        yield superlink
    finally:
        down(home, grace=0)


def up(plan: DeploymentPlan, home: Path, deadline: float = float("inf")) -> list[Role]:
    """Start the roles of a plan and leave them running.

    Args:
        home: the folder for their state and logs.
        deadline: the time.monotonic() by which the SuperLink must answer; at most START_LIMIT.

    Raises:
        ConfigError: the plan lets strangers in, or lacks a certificate.
        EngineError: roles of this home are running already, or one does not start; then none stays.
    """
    running = [role.name for role in read_roles(home) if role.process()]
    if running:
        raise EngineError(f"already running here: {', '.join(running)}; take them down first")
    plan.check()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    started: dict[str, Role] = {}
    try:
        for role in _start_all(home, plan, deadline):
            started[role.name] = role
            _write_state(home, plan, list(started.values()))
    except BaseException:
        down(home)
        raise
    return list(started.values())


def down(home: Path, grace: float = GRACE) -> list[str]:
    """End the roles that `up` started in this home; returns the names of those that were alive.

    Each role has `grace` seconds to sign off by itself.
    """
    ended = []
    for role in reversed(read_roles(home)):
        if role.process():
            ended.append(role.name)
        if role.process() or not psutil.pid_exists(role.pid):  # else another process has its pid
            end_tree(role.pid, grace)
    (home / STATE).unlink(missing_ok=True)
    return ended


def read_roles(home: Path) -> list[Role]:
    """The roles that `up` started in this home, dead or alive."""
    return [Role(**role) for role in _read_state(home).get("roles", [])]


def superlink_of(home: Path) -> SuperLinkAddress | None:
    """The SuperLink that `up` started in this home, if it did."""
    address = _read_state(home).get("superlink")
    return SuperLinkAddress(**address) if address else None


def _read_state(home: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((home / STATE).read_text())
        return state
    except FileNotFoundError:
        return {}


def _write_state(home: Path, plan: DeploymentPlan, started: list[Role]) -> None:
    superlink = None if plan.join else asdict(_superlink(plan, started[0].port))
    state = {"superlink": superlink, "roles": [asdict(role) for role in started]}
    (home / STATE).write_text(json.dumps(state, indent=2) + "\n")


def _superlink(plan: DeploymentPlan, port: int) -> SuperLinkAddress:
    return SuperLinkAddress(f"127.0.0.1:{port}", plan.superlink_certs())


def _start_all(home: Path, plan: DeploymentPlan, deadline: float) -> Iterator[Role]:
    """Start the roles one by one, the SuperLink first; a node that is started again comes twice."""
    address = plan.join
    if not address:
        certs = plan.superlink_certs()
        port = plan.port or free_port()
        if healthy(port, certs):
            raise EngineError(f"another SuperLink answers on port {port}")
        command = superlink_command(plan.host, port, database=str(home / DATABASE), certs=certs)
        process = serve(command, home, port, deadline, certs)
        yield _role("superlink", process, port, home / LOG)
        address = f"127.0.0.1:{port}"
        register_nodes(SuperLinkAddress(address, certs))
        log = home / "serverapp.log"
        process = start(serverapp_command(address, certs=certs), home, log)
        yield _role("serverapp", process, 0, log)
    started = []
    for number in range(len(plan.nodes)):
        node = _plan_node(home, plan, address, number)
        process = node.start()
        yield node.role(process)
        started.append((node, process))
    for node, process in started:
        yield from _restart_until_connected(node, process)


def _plan_node(home: Path, plan: DeploymentPlan, address: str, number: int) -> _Node:
    """A SuperNode with a home of its own, as on a machine of its own."""
    config = plan.nodes[number]
    name, port = f"supernode-{config['partition-id']}", free_port()
    (home / name).mkdir(exist_ok=True)
    command = supernode_command(address, port, config, certs=plan.node_certs(config))
    env = {"CUDA_VISIBLE_DEVICES": plan.gpus[number % len(plan.gpus)]} if plan.gpus else {}
    return _Node(name, command, home / name, home / f"{name}.log", port, env)


def _restart_until_connected(node: _Node, process: subprocess.Popen[bytes]) -> Iterator[Role]:
    """Wait until a SuperNode is connected; restart it if the SuperLink refuses it.

    After a node dies, the SuperLink refuses its key for a minute. A node that finds no SuperLink
    keeps looking by itself.
    """
    start_time = time.monotonic()
    while CONNECTED not in node.log.read_text(errors="replace"):
        waited = time.monotonic() - start_time
        if process.poll() is None:
            if waited > NODE_PATIENCE:
                return
            time.sleep(POLL)
        elif waited > NODE_LIMIT:
            raise EngineError(f"{node.name} is refused, or ends by itself: see {node.log}")
        else:
            end(process)  # its descendants
            time.sleep(RETRY)
            process = node.start()
            yield node.role(process)


def _role(name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> Role:
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess as error:
        raise EngineError(f"{name} ended at once: see {log}") from error
    return Role(name, process.pid, created, port, str(log))
