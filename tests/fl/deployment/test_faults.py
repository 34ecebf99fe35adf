"""Real processes die, hang, come back, restart and run out of disk: nothing is lost beyond them."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from fl.config import CHECKOUT, check_settings, default_settings
from fl.deployment.certificates import make_certificates
from fl.deployment.registration import Place, known_nodes
from fl.deployment.roles import Plan, down, read_roles, standing, up
from fl.engines.commands import serverapp_command, superlink_command
from fl.engines.processes import end, end_family, free_port, start
from fl.engines.submission import RunEnd, submit
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
    """Wait for something; fail when it does not come."""
    ends = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < ends, f"{what} did not come"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Path:
    """Our app with the tests' ClientApp: what is tried is all the rest."""
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
    """A SuperLink and SuperNodes that stay up, to be broken one by one."""

    folder: Path
    app: Path
    fingerprint: str
    rows: int = 40
    certs: str = ""
    place: Place = field(init=False)

    def __post_init__(self) -> None:
        self.signals.mkdir()

    @property
    def signals(self) -> Path:
        return self.folder / "signals"

    def home(self, number: int) -> Path:
        return self.folder / f"node-{number}"

    def start_superlink(self) -> None:
        port = free_port()
        up(Plan([], port=port, certs=self.certs), self.folder / "server")
        self.place = Place(f"127.0.0.1:{port}", f"{self.certs}/superlink" if self.certs else "")

    def start_node(self, number: int) -> None:
        config = {"signals": str(self.signals), "fingerprint": self.fingerprint, "rows": self.rows}
        node = {"partition-id": number, **config}
        up(Plan([node], join=self.place.address, certs=self.certs), self.home(number))

    def start_nodes(self, count: int) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start_node, range(count)))
        until(lambda: self.online() == count, f"{count} nodes")

    def online(self) -> int:
        return sum(node.status == "online" for node in known_nodes(self.place))

    def process(self, home: Path, role: str) -> psutil.Process:
        [found] = [r for r in read_roles(home) if r.name == role]
        process = found.process()
        assert process is not None
        return process

    def kill_node(self, number: int) -> None:
        end_family(self.process(self.home(number), f"supernode-{number}").pid)

    def hold(self, name: str) -> None:
        (self.signals / f"hold-{name}").touch()

    def release(self, name: str) -> None:
        (self.signals / f"hold-{name}").unlink()

    def settings(self, **changes: object) -> dict:
        own = {"data.shared": False, "data.kind": "folder", "evaluate.baselines": False}
        given = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
        return default_settings() | own | given

    def run(self, name: str = "run", **changes: object) -> RunEnd:
        """Submit, and wait for the end."""
        given = self.settings(out=str(self.folder / name), **changes)
        serving = partial(standing, place=self.place)
        log = self.folder / f"{name}.log"
        return submit(self.app, given, serving, log=log, deadline=LIMIT)

    def run_meanwhile(self, name: str = "run", **changes: object) -> Callable[[], RunEnd]:
        """Submit; returns what waits for the end."""
        ended: list[RunEnd] = []
        thread = threading.Thread(target=lambda: ended.append(self.run(name, **changes)))
        thread.start()

        def wait() -> RunEnd:
            thread.join(LIMIT)
            assert ended, "the run did not end"
            return ended[0]

        return wait

    def metrics(self, name: str = "run") -> dict:
        return json.loads((self.folder / name / "metrics.json").read_text())

    def bank(self, name: str = "run") -> np.ndarray:
        return ModelFile.read(self.folder / name / "model.safetensors").banks["part"]

    def expected(self, numbers: list[int], seed: int) -> np.ndarray:
        """The merge of these clients' rows, made here."""
        sent = {number: bank_of(random_rows(number, seed, self.rows)) for number in numbers}
        return merge_coresets(sent, seed=seed).features


@pytest.fixture
def federation(tmp_path, app, left_over) -> Iterator[Callable[..., Federation]]:
    """federation(**fields): a Federation of which nothing is left in the end."""
    made: list[Federation] = []

    def make(**fields: object) -> Federation:
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


def test_nodes_that_die_or_hang_cost_their_own_share_and_one_that_comes_back_costs_nothing(
    federation, tmp_path
) -> None:
    make_certificates(tmp_path / "certs", ["localhost"], range(5))
    plants = federation(certs=str(tmp_path / "certs"))
    plants.start_superlink()
    plants.start_nodes(5)
    for number in (2, 3, 4):
        plants.hold(f"train-{number}")
    plants.kill_node(1)  # before fit: the SuperLink still takes it for there
    wait = plants.run_meanwhile(clients=5, min_clients=2, timeout=75)
    until((plants.signals / "train-2").exists, "client 2's fit")
    plants.kill_node(2)  # during fit; it stays away
    until((plants.signals / "train-4").exists, "client 4's fit")
    down(plants.home(4))  # during fit: it signs off, and comes back; client 3 hangs until the end
    plants.release("train-4")
    plants.start_node(4)
    ended = wait()
    assert ended.ok, ended.error
    metrics = plants.metrics()
    assert [client["client"] for client in metrics["local"]["clients"]] == [0, 4]
    np.testing.assert_array_equal(plants.bank(), plants.expected([0, 4], seed=42))
    reasons = {entry["client"]: entry["reason"] for entry in metrics["refused"]}
    assert set(reasons) == {1, 2, 3}
    assert reasons[3] == "it gave no answer within 75 s"
    for dead in (1, 2):
        assert reasons[dead] == "it went away and did not come back in time"
    report = (plants.folder / "run" / "report.html").read_text()
    assert "3 clients left out of the merged bank" in report


def test_two_runs_at_once_and_the_superlink_s_restart_between_train_and_evaluate_lose_nothing(
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
    end_family(plants.process(home, "superlink").pid)
    time.sleep(3)
    port = int(plants.place.address.rpartition(":")[2])
    command = superlink_command("127.0.0.1", port, database=str(home / "superlink.db"))
    with ExitStack() as stack:
        again = serve(command, home, port, time.monotonic() + 60)
        stack.callback(end, again)
        for number in range(2):
            plants.release(f"evaluate-{number}")
        for name, wait in runs.items():
            ended = wait()
            assert ended.ok, (name, ended.error)
    for name, seed in SEEDS.items():
        np.testing.assert_array_equal(plants.bank(name), plants.expected([0, 1], seed))
        assert plants.metrics(name)["refused"] == []
        assert plants.metrics(name)["federated"] == {"image_auroc": 0.9}


SEEDS = {"one": 1, "other": 2}


def test_a_full_disk_is_the_run_s_error_and_the_run_goes_on_from_its_merge_when_there_is_room(
    federation, tmp_path
) -> None:
    plants = federation(rows=400)
    home, out, flag = plants.folder / "server", tmp_path / "run", tmp_path / "full"
    home.mkdir()
    out.mkdir()
    flag.touch()
    port = free_port()
    plants.place = Place(f"127.0.0.1:{port}")
    with ExitStack() as stack:
        link = superlink_command("127.0.0.1", port, database=str(home / "superlink.db"))
        stack.callback(end, serve(link, home, port, time.monotonic() + 60))
        small = ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", str(out), str(flag)]
        server = start([*small, *serverapp_command(plants.place.address)], home, home / "app.log")
        stack.callback(end, server)
        time.sleep(1)
        if server.poll() is not None:
            pytest.skip(f"no name spaces here: {(home / 'app.log').read_text()}")
        plants.start_nodes(2)
        ended = plants.run(clients=2)
        assert not ended.ok
        assert ended.error == (
            f"the run directory {out} cannot be written: No space left on device; its merged bank "
            "is kept. Make room, then start again with --resume"
        )
        seen = Path(f"/proc/{server.pid}/root") / out.relative_to("/")
        assert not (seen / "metrics.json").exists()
        flag.unlink()
        until(lambda: not (seen / "ballast").exists(), "room")
        for name in ("train-0", "train-1"):
            (plants.signals / name).unlink()
        ended = plants.run(clients=2, resume=True)
        assert ended.ok, ended.error
        assert json.loads((seen / "metrics.json").read_text())["refused"] == []
        bank = ModelFile.read(seen / "model.safetensors").banks["part"]
        np.testing.assert_array_equal(bank, plants.expected([0, 1], seed=42))
    assert not list(plants.signals.glob("train-*"))  # nobody was asked for banks again
