"""A ClientApp without a backbone, which starts quickly and waits when a test asks it to.

Its node configuration names a folder `signals`. Client I creates NAME-I there when it starts a
train or evaluate message, and waits while hold-NAME-I exists.
"""

import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl.wire.banks import pack_upload, unpack_rows
from fl.wire.envelope import CONFIG, TICKET, Sender
from fl.wire.results import pack_results
from fl.wire.surveys import pack_holdings
from src.federated.candidates import EncodedBank
from src.federated.codec import CODES
from src.federated.types import QUANTILES, ClientBank, ClientStats

app = ClientApp()
DIM = 152  # of the smallest backbone
LIMIT = 200.0  # seconds that a client waits at most


def begin(name: str, context: Context) -> int:
    """Signal that a message has arrived, and wait while it is held; returns the client's number."""
    number = int(context.node_config["partition-id"])
    signals = Path(str(context.node_config["signals"]))
    (signals / f"{name}-{number}").touch()
    deadline = time.monotonic() + LIMIT
    while (signals / f"hold-{name}-{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return number


def random_rows(number: int, seed: int, rows: int) -> np.ndarray:
    """A client's rows [rows, DIM] float16."""
    random = np.random.default_rng([number, seed])
    return random.normal(size=(rows, DIM)).astype(np.float16)


def bank_of(features: np.ndarray) -> ClientBank:
    """A client's bank of these rows, half of which are its share."""
    rows = len(features)
    return ClientBank(features, 1.0, 2.0, ClientStats(1, 1000 * rows, rows // 2))


def sender(number: int, context: Context) -> Sender:
    fingerprint = str(context.node_config["fingerprint"])
    return Sender(number, fingerprint, version("fedpatchcore"), {})


def own_rows(number: int, message: Message, context: Context) -> np.ndarray:
    """The rows that this client sends in this run."""
    rows = int(context.node_config.get("rows", 40))
    return random_rows(number, int(message.content[CONFIG]["seed"]), rows)


@app.query("holdings")
def holdings(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"])
    stats = bank_of(own_rows(number, message, context)).stats
    return answer(pack_holdings(sender(number, context), {"part": stats}), message)


@app.train()
def train(message: Message, context: Context) -> Message:
    number = begin("train", context)
    features = own_rows(number, message, context)
    upload = {"part": EncodedBank({CODES: features}, bank_of(features))}
    return answer(pack_upload(sender(number, context), upload), message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    number = begin("evaluate", context)
    assert len(unpack_rows(message.content)["part"])
    metrics = {"image_auroc": 0.9}
    calibration = {"quantiles": np.linspace(0, 1, QUANTILES).tolist(), "images": 3, "radius": 5.0}
    results = {
        "federated": {"mean": metrics, "objects": {"part": metrics}},
        "calibration": {"part": calibration},
    }
    return answer(pack_results(sender(number, context), results), message)


def answer(content: RecordDict, message: Message) -> Message:
    content[TICKET] = message.content[TICKET]
    return Message(content, reply_to=message)
