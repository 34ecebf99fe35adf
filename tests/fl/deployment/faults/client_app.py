"""A ClientApp without a backbone: it starts quickly, and a test can make it wait.

In `signals`, a folder that the node's configuration names, it leaves NAME-I when it begins to
answer a train or evaluate message, and waits as long as hold-NAME-I exists.
"""

import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl.wire.banks import pack_upload, unpack_merged
from fl.wire.envelope import CONFIG, TICKET, Sender
from fl.wire.results import pack_results
from fl.wire.surveys import pack_holdings
from src.federated.candidates import EncodedBank
from src.federated.codec import CODES
from src.federated.types import QUANTILES, ClientBank, ClientStats

app = ClientApp()
DIM = 152  # of the smallest backbone
LIMIT = 200.0  # seconds that a client waits at most


def begin(name: str, context: Context) -> None:
    """Signal that a message is being answered; wait while the test holds it."""
    number = int(context.node_config["partition-id"])
    signals = Path(str(context.node_config["signals"]))
    (signals / f"{name}-{number}").touch()
    ends = time.monotonic() + LIMIT
    while (signals / f"hold-{name}-{number}").exists() and time.monotonic() < ends:
        time.sleep(0.1)


def random_rows(number: int, seed: int, rows: int) -> np.ndarray:
    """A client's rows, which the test can draw as well."""
    random = np.random.default_rng([number, seed])
    return random.normal(size=(rows, DIM)).astype(np.float16)


def bank_of(features: np.ndarray) -> ClientBank:
    """The bank of a client that sends these rows; half of them are its share."""
    rows = len(features)
    return ClientBank(features, 1.0, 2.0, ClientStats(1, 1000 * rows, rows // 2))


def sender(context: Context) -> Sender:
    number = int(context.node_config["partition-id"])
    return Sender(number, str(context.node_config["fingerprint"]), version("fedpatchcore"), {})


def rows_to_send(message: Message, context: Context) -> np.ndarray:
    """The rows that this client sends in this run."""
    number, rows = (int(context.node_config.get(key, 40)) for key in ("partition-id", "rows"))
    return random_rows(number, int(message.content[CONFIG]["seed"]), rows)


@app.query("holdings")
def holdings(message: Message, context: Context) -> Message:
    stats = bank_of(rows_to_send(message, context)).stats
    return reply(pack_holdings(sender(context), {"part": stats}), message)


@app.train()
def train(message: Message, context: Context) -> Message:
    begin("train", context)
    features = rows_to_send(message, context)
    encoded = EncodedBank({CODES: features}, bank_of(features))
    return reply(pack_upload(sender(context), {"part": encoded}), message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    begin("evaluate", context)
    assert len(unpack_merged(message.content)["part"].features)
    metrics = {"image_auroc": 0.9}
    calibration = {"quantiles": np.linspace(0, 1, QUANTILES).tolist(), "images": 3, "radius": 5.0}
    results = {
        "federated": {"mean": metrics, "objects": {"part": metrics}},
        "calibration": {"part": calibration},
    }
    return reply(pack_results(sender(context), results), message)


def reply(content: RecordDict, message: Message) -> Message:
    content[TICKET] = message.content[TICKET]
    return Message(content, reply_to=message)
