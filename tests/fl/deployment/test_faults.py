"""Real processes die, hang, restart and run out of disk; only their own work is lost."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from fl.config import CHECKOUT, default_settings
from fl.deployment.certificates import make_certificates
from fl.deployment.plan import DeploymentPlan
from fl.deployment.registration import known_nodes
from fl.deployment.roles import down, read_roles, up
from fl.engines.commands import serverapp_command, superlink_command
from fl.engines.control import SuperLinkAddress
from fl.engines.processes import end, end_tree, free_port, start
from fl.engines.submission import RunFailed, submit
from fl.engines.superlink import serve
from fl.setup.model import build_model
from src.federated.merge import merge_coresets
from src.models.model_file import ModelFile
from tests.fl.deployment.faults.client_app import bank_of, random_rows

pytestmark = pytest.mark.slow

LIMIT = 150.0  # seconds that a test waits for anything
FULL_DISK = """
mount -t tmpfs -o size=600k tmpfs "$1" && head -c 420k /dev/zero > "$1/ballast" || exit 1
(while [ -e "$2" ]; do sleep 0.2; done; rm "$1/ballast") &
shift 2 && exec "$@"
"""


def until(happened: Callable[[], object], what: str) -> None:
    """Wait for an event; fail after LIMIT."""
    ends = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < ends, f"{what} did not come"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Path:
    """Our app with the ClientApp of the tests."""
    folder = tmp_path_factory.mktemp("app") / "faults-app"
    for package in ("fl", "src"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / package, folder / package, ignore=ignored)
    shutil.copytree(Path(__file__).parent / "faults", folder / "faults")
    text = (CHECKOUT / "pyproject.toml").read_text()
    text = text.replace('"fl.client_app:app"', '"faults.client_app:app"')
    text = text.replace('"fl/**/*.py"]', '"fl/**/*.py", "faults/**/*.py"]')
    assert text.count("faults") == 2
    (folder / "pyproject.toml").write_text(text)
    return folder


@dataclass
class Federation:
    """A running SuperLink and SuperNodes, whose processes a test can break."""

    folder: Path
    app: Path
    fingerprint: str
    rows: int = 40
    certs: str = ""
    superlink: SuperLinkAddress = field(init=False)

    def __post_init__(self) -> None:
        self.signals.mkdir()

    @property
    def signals(self) -> Path:
        return self.folder / "signals"

    def home(self, number: int) -> Path:
        return self.folder / f"node-{number}"

    def start_superlink(self) -> None:
        port = free_port()
        up(DeploymentPlan([], port=port, certs=self.certs), self.folder / "server")
        certs = f"{self.certs}/superlink" if self.certs else ""
        self.superlink = SuperLinkAddress(f"127.0.0.1:{port}", certs)

    def start_node(self, number: int) -> None:
        config = {"signals": str(self.signals), "fingerprint": self.fingerprint, "rows": self.rows}
        node = {"partition-id": number, **config}
        plan = DeploymentPlan([node], join=self.superlink.address, certs=self.certs)
        up(plan, self.home(number))

    def start_nodes(self, count: int) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start_node, range(count)))
        until(lambda: self.online() == count, f"{count} nodes")

    def online(self) -> int:
        return sum(node.status == "online" for node in known_nodes(self.superlink))

    def process(self, home: Path, role: str) -> psutil.Process:
        [found] = [r for r in read_roles(home) if r.name == role]
        process = found.process()
        assert process is not None
        return process

    def kill_node(self, number: int) -> None:
        end_tree(self.process(self.home(number), f"supernode-{number}").pid)

    def hold(self, name: str) -> None:
        (self.signals / f"hold-{name}").touch()

    def release(self, name: str) -> None:
        (self.signals / f"hold-{name}").unlink()

    def settings(self, **changes: object) -> dict:
        own = {"data.shared": False, "data.kind": "folder", "evaluate.baselines": False}
        given = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
        return default_settings() | own | given

    def run(self, name: str = "run", **changes: object) -> None:
        """Submit, and wait for the end."""
        settings = self.settings(out=str(self.folder / name), **changes)

        def serving(home: Path, deadline: float) -> nullcontext:
            return nullcontext(self.superlink)

        submit(self.app, settings, serving, log=self.folder / f"{name}.log", timeout=LIMIT)

    def run_meanwhile(self, name: str = "run", **changes: object) -> Callable[[], None]:
        """Submit in a thread; returns a function that waits for the end, and raises its error."""
        run = ThreadPoolExecutor(1).submit(self.run, name, **changes)
        return partial(run.result, LIMIT)

    def metrics(self, name: str = "run") -> dict:
        return json.loads((self.folder / name / "metrics.json").read_text())

    def bank(self, name: str = "run") -> np.ndarray:
        return ModelFile.read(self.folder / name / "model.safetensors").banks["part"]

    def expected(self, numbers: list[int], seed: int) -> np.ndarray:
        """The merge of these clients' rows, computed here."""
        sent = {number: bank_of(random_rows(number, seed, self.rows)) for number in numbers}
        return merge_coresets(sent, seed=seed).features


@pytest.fixture
def federation(tmp_path, app, left_over) -> Iterator[Callable[..., Federation]]:
    """federation(**fields): a Federation; fails if one of its processes is left at the end."""
    made: list[Federation] = []

    def make(**fields: object) -> Federation:
        from fl.config import check_settings

        fingerprint = build_model(check_settings(default_settings())).backbone.fingerprint
        made.append(Federation(tmp_path, app, fingerprint, **fields))
        return made[-1]

    yield make
    for one in made:
        for name in one.signals.glob("hold-*"):
            name.unlink()
        for home in [*one.folder.glob("node-*"), one.folder / "server"]:
            down(home)
    assert left_over() == []


def test_dead_and_silent_nodes_are_left_out_and_one_that_comes_back_is_not(
    federation, tmp_path
) -> None:
    make_certificates(tmp_path / "certs", ["localhost"], range(5))
    plants = federation(certs=str(tmp_path / "certs"))
    plants.start_superlink()
    plants.start_nodes(5)
    for number in (2, 3, 4):
        plants.hold(f"train-{number}")
    plants.kill_node(1)  # before fit; the SuperLink has not noticed yet
    wait = plants.run_meanwhile(clients=5, min_clients=2, timeout=75)
    until((plants.signals / "train-2").exists, "client 2's fit")
    plants.kill_node(2)  # during fit; it stays away
    until((plants.signals / "train-4").exists, "client 4's fit")
    down(plants.home(4))  # during fit; it signs off and comes back, while client 3 hangs to the end
    plants.release("train-4")
    plants.start_node(4)
    wait()
    metrics = plants.metrics()
    assert [client["client"] for client in metrics["local"]["clients"]] == [0, 4]
    np.testing.assert_array_equal(plants.bank(), plants.expected([0, 4], seed=42))
    reasons = {entry["client"]: entry["reason"] for entry in metrics["refused"]}
    assert set(reasons) == {1, 2, 3}
    assert reasons[3] == "it did not answer within 75 s"
    for dead in (1, 2):
        assert reasons[dead] == "it went away and did not come back in time"
    report = (plants.folder / "run" / "report.html").read_text()
    assert "3 clients left out of the merged bank" in report


def test_two_concurrent_runs_survive_a_restart_of_the_superlink(
    federation,
) -> None:
    plants = federation()
    plants.start_superlink()
    plants.start_nodes(2)
    for number in range(2):
        plants.hold(f"evaluate-{number}")
    runs = {name: plants.run_meanwhile(name, clients=2, seed=s) for name, s in SEEDS.items()}
    for name in SEEDS:
        until((plants.folder / name / "round.json").exists, f"the merge of {name}")
    until((plants.signals / "evaluate-0").exists, "the evaluation of one of them")
    time.sleep(5)  # the other's messages are on the SuperLink, and wait for the nodes
    home = plants.folder / "server"
    end_tree(plants.process(home, "superlink").pid)
    time.sleep(3)
    port = int(plants.superlink.address.rpartition(":")[2])
    command = superlink_command("127.0.0.1", port, database=str(home / "superlink.db"))
    with ExitStack() as stack:
        again = serve(command, home, port, time.monotonic() + 60)
        stack.callback(end, again)
        for number in range(2):
            plants.release(f"evaluate-{number}")
        for wait in runs.values():
            wait()
    for name, seed in SEEDS.items():
        np.testing.assert_array_equal(plants.bank(name), plants.expected([0, 1], seed))
        assert plants.metrics(name)["refused"] == []
        assert plants.metrics(name)["federated"] == {"image_auroc": 0.9}


SEEDS = {"one": 1, "other": 2}


def test_a_full_disk_fails_the_run_which_resumes_from_its_merge(federation, tmp_path) -> None:
    plants = federation(rows=400)
    home, out, flag = plants.folder / "server", tmp_path / "run", tmp_path / "full"
    home.mkdir()
    out.mkdir()
    flag.touch()
    port = free_port()
    plants.superlink = SuperLinkAddress(f"127.0.0.1:{port}")
    with ExitStack() as stack:
        link = superlink_command("127.0.0.1", port, database=str(home / "superlink.db"))
        stack.callback(end, serve(link, home, port, time.monotonic() + 60))
        small = ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", str(out), str(flag)]
        server = start(
            [*small, *serverapp_command(plants.superlink.address)], home, home / "app.log"
        )
        stack.callback(end, server)
        time.sleep(1)
        if server.poll() is not None:
            pytest.skip(f"no name spaces here: {(home / 'app.log').read_text()}")
        plants.start_nodes(2)
        message = (
            f"the run directory {out} cannot be written: No space left on device; its merged bank "
            "is kept. Make room, then start again with --resume"
        )
        with pytest.raises(RunFailed, match="^" + re.escape(message)):
            plants.run(clients=2)
        seen = Path(f"/proc/{server.pid}/root") / out.relative_to("/")
        assert not (seen / "metrics.json").exists()
        flag.unlink()
        until(lambda: not (seen / "ballast").exists(), "room")
        for name in ("train-0", "train-1"):
            (plants.signals / name).unlink()
        plants.run(clients=2, resume=True)
        assert json.loads((seen / "metrics.json").read_text())["refused"] == []
        bank = ModelFile.read(seen / "model.safetensors").banks["part"]
        np.testing.assert_array_equal(bank, plants.expected([0, 1], seed=42))
    assert not list(plants.signals.glob("train-*"))  # nobody was asked for banks again
