"""Small federations on drawn parts, in this process; features are extracted once a session."""

import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from fl.cli.main import main
from fl.client_app import app as honest_app
from fl.config import Settings, check_settings, default_settings
from fl.engines.inline import run_inline
from fl.server_app import app as server_app
from src.data import write_synthetic
from src.models.model_file import ModelFile

# Ray's workers, and the CLI as a process of its own, must be as quiet as we are
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Handler = Callable[[Message, Context], Message]

# a Flower app that needs no torch: its engines start and end quickly
PYPROJECT = """
[project]
name = "tiny"
version = "0.1.0"
description = "One round of greetings"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedpatchcore"
[tool.flwr.app.components]
serverapp = "tiny.server_app:app"
clientapp = "tiny.client_app:app"
[tool.flwr.app.config]
then = "return"
data.root = ""
"""
CLIENT_APP = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from tiny import GREETING

app = ClientApp()

@app.train()
def train(message, context):
    text = f"{GREETING} {context.node_config['partition-id']} {context.run_config['data.root']}"
    return Message(RecordDict({"reply": ConfigRecord({"text": text})}), reply_to=message)
"""
SERVER_APP = """
import time
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    print("the ServerApp is here", flush=True)
    if context.run_config["then"] == "hang":
        time.sleep(600)
    while len(ids := list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    messages = [Message(RecordDict(), node_id, "train") for node_id in ids]
    for reply in grid.send_and_receive(messages, timeout=200):
        print(reply.content["reply"]["text"], flush=True)
    if context.run_config["then"] == "raise":
        raise RuntimeError("the merge got no bank:\\nno client answered")
"""


@dataclass(frozen=True)
class Run:
    """A run that came to its end."""

    out: Path

    @property
    def metrics(self) -> dict:
        return json.loads((self.out / "metrics.json").read_text())

    @property
    def model(self) -> ModelFile:
        return ModelFile.read(self.out / "model.safetensors")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """What was said of the error, on one line."""
        assert self.code == 1
        assert "Traceback" not in self.out + self.err
        assert self.err.startswith("error: ")
        return " ".join(self.err.split())


@pytest.fixture
def cli(capfd, monkeypatch) -> Callable[..., Ended]:
    """cli(*words): the command in this process, as its user would see it."""

    def call(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedpatchcore", *map(str, words)])
        code = 0
        capfd.readouterr()  # what the fixtures' own runs said
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capfd.readouterr()
        return Ended(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """The feature cache that all tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """One object in the AutoVI layout: 6 training images, 3 normal and 3 anomalous test images."""
    root = tmp_path_factory.mktemp("parts") / "bracket"
    return write_synthetic(root, ("bracket",), train=6, good=3, defects=3, size=(64, 64))


@pytest.fixture(scope="session")
def two_objects(tmp_path_factory) -> Path:
    """Two objects, each with 3 training images and 2 test images of either kind."""
    root = tmp_path_factory.mktemp("parts") / "both"
    return write_synthetic(root, train=3, good=2, defects=2, size=(64, 64))


@pytest.fixture(scope="session")
def plants(tmp_path_factory) -> list[Path]:
    """Two data roots of two plants, with images of their own."""
    folder = tmp_path_factory.mktemp("plants")
    size = {"good": 2, "defects": 2, "size": (64, 64)}
    return [
        write_synthetic(folder / f"plant {i}", ("bracket",), train=2 + i, seed=i, **size)
        for i in range(2)
    ]


@pytest.fixture(scope="session")
def flat(cache: Path, parts: Path) -> Callable[..., dict]:
    """flat(**changes): settings of three clients on the parts; `__` is a dot, `_` a dash."""
    small = {
        "engine": "inline",
        "clients": 3,
        "data.kind": "autovi",
        "data.root": str(parts),
        "data.image-size": "64",
        "cache.dir": str(cache),
        "evaluate.maps": False,
        "seed": 42,
        "model.coreset-percentage": 0.1,
        "merge.oversample": 2.0,
    }

    def make(**changes: Any) -> dict:
        named = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
        return default_settings() | small | named

    return make


@pytest.fixture(scope="session")
def settings(flat) -> Callable[..., Settings]:
    """settings(**changes): the same, checked."""
    return lambda **changes: check_settings(flat(**changes))


@pytest.fixture(scope="session")
def run(flat, tmp_path_factory) -> Callable[..., Run]:
    """run(**changes): a run to its end; `client_app`, `nodes` and `shuffle` as of run_inline."""

    def make(
        client_app: ClientApp = honest_app,
        nodes: list[dict] | None = None,
        shuffle: int | None = None,
        **changes: Any,
    ) -> Run:
        given = flat(**{"out": str(tmp_path_factory.mktemp("run")), **changes})
        numbers = range(int(given["clients"]))
        default = [{"partition-id": i, "num-partitions": len(numbers)} for i in numbers]
        run_inline(server_app, client_app, given, nodes or default, seed=shuffle)
        return Run(Path(given["out"]))

    return make


@pytest.fixture(scope="session")
def clean(run) -> Run:
    """A run in which nothing goes wrong."""
    return run()


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets messages be made outside a run."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def misbehaving(
    train: Mapping[int, Handler],
    evaluate: Mapping[int, Handler] = {},
    query: Mapping[int, Handler] = {},
) -> ClientApp:
    """The ClientApp with other handlers for some clients."""
    app = ClientApp()

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        return train.get(context.node_config["partition-id"], honest_app)(message, context)

    def _query(message: Message, context: Context) -> Message:
        return query.get(context.node_config["partition-id"], honest_app)(message, context)

    for action in ("holdings", "curves", "farthest", "sums"):
        app.query(action)(_query)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        return evaluate.get(context.node_config["partition-id"], honest_app)(message, context)

    return app


def rewriting(change: Callable[[RecordDict], None]) -> Handler:
    """A handler that answers honestly, then changes what it is about to send."""

    def handle(message: Message, context: Context) -> Message:
        reply = honest_app(message, context)
        change(reply.content)
        return reply

    return handle


@pytest.fixture(scope="session")
def misbehave() -> Callable[..., ClientApp]:
    """misbehave({client: handler}, ...): a ClientApp, of train, of evaluate and of query."""
    return misbehaving


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., Handler]:
    """rewrite(change): a handler whose answer, an honest one, goes through `change`."""
    return rewriting


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    """A Flower app whose clients greet; `then`: whether its ServerApp returns, raises or hangs."""
    folder = tmp_path / "an_app"
    (folder / "tiny").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "tiny" / "__init__.py").write_text("GREETING = 'greetings from client'\n")
    (folder / "tiny" / "client_app.py").write_text(CLIENT_APP)
    (folder / "tiny" / "server_app.py").write_text(SERVER_APP)
    return folder


@pytest.fixture
def left_over(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """left_over() names the living processes that the test started, however distant."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("FEDPATCHCORE_TEST_MARK", mark)

    def living() -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("FEDPATCHCORE_TEST_MARK") == mark
                alive = process.status() != psutil.STATUS_ZOMBIE
                if ours and alive and process.pid != os.getpid():
                    found.append(process.name())
            except psutil.Error:
                continue
        return found

    return living
