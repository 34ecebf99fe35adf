"""A ClientApp without a backbone, which starts quickly and waits when a test asks it to.

Its node configuration names a folder `signals`. Client I creates NAME-I there when it starts a
train or evaluate message, and waits while hold-NAME-I exists.
"""

import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl.wire.arrays import unpack_banks
from fl.wire.messages import (
    CONFIG,
    TICKET,
    Prospect,
    Sender,
    Upload,
    pack_prospect,
    pack_results,
    pack_upload,
)
from src.federated.codec import CODES
from src.federated.types import QUANTILES, ClientBank, Holding, Survey

app = ClientApp()
DIM = 152  # of the smallest backbone
LIMIT = 200.0  # seconds that a client waits at most


def begin(name: str, context: Context) -> int:
    """Say that a message is being answered; wait until it may be. Returns the client's number."""
    number = int(context.node_config["partition-id"])
    signals = Path(str(context.node_config["signals"]))
    (signals / f"{name}-{number}").touch()
    ends = time.monotonic() + LIMIT
    while (signals / f"hold-{name}-{number}").exists() and time.monotonic() < ends:
        time.sleep(0.1)
    return number


def drawn(number: int, seed: int, rows: int) -> np.ndarray:
    """A client's rows: the same ones whoever draws them."""
    random = np.random.default_rng([number, seed])
    return random.normal(size=(rows, DIM)).astype(np.float16)


def bank_of(features: np.ndarray) -> ClientBank:
    """What a client says of rows that it sends: half of them are its share."""
    rows = len(features)
    return ClientBank(features, 1.0, 2.0, Holding(1, 1000 * rows, rows // 2))


def sender(number: int, context: Context) -> Sender:
    """Who answers; it takes no time."""
    fingerprint = str(context.node_config["fingerprint"])
    seconds = {"features": 0.0, "coreset": 0.0}
    return Sender(number, fingerprint, version("fedpatchcore"), seconds)


def sent_by(number: int, message: Message, context: Context) -> np.ndarray:
    """The rows that this client sends in this run."""
    rows = int(context.node_config.get("rows", 40))
    return drawn(number, int(message.content[CONFIG]["seed"]), rows)


@app.query()
def query(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"])
    held = bank_of(sent_by(number, message, context)).holding
    nothing = Survey(held, np.empty(0, np.int64), np.empty(0))
    return answer(pack_prospect(Prospect(sender(number, context), {"part": nothing})), message)


@app.train()
def train(message: Message, context: Context) -> Message:
    number = begin("train", context)
    features = sent_by(number, message, context)
    upload = Upload(sender(number, context), {"part": bank_of(features)})
    return answer(pack_upload(upload, {"part": {CODES: features}}), message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    number = begin("evaluate", context)
    assert len(unpack_banks(message.content["banks"])["part"])
    figures = {"image_auroc": 0.9}
    calibration = {"quantiles": np.linspace(0, 1, QUANTILES).tolist(), "images": 3, "radius": 5.0}
    results = {
        "client": number,
        "federated": {"mean": figures, "objects": {"part": figures}},
        "calibration": {"part": calibration},
        "seconds": {"features": 0.0, "evaluate": 0.0, "local": 0.0},
    }
    return answer(pack_results(results), message)


def answer(content, message: Message) -> Message:
    content[TICKET] = message.content[TICKET]
    return Message(content, reply_to=message)
