"""The ClientApp: fit a bank on the images this node holds, install the merged one and score.

Each function decodes, calls `src.client`, encodes. A failure is answered in words, so that the
server can say which client it was; where data are the node's own, in words that name no file.
"""

import logging
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl.config import ConfigError, Settings, check_settings
from fl.messages import (
    BANKS,
    CONFIG,
    TICKET,
    Results,
    Side,
    Upload,
    pack_banks,
    pack_failure,
    pack_results,
    pack_upload,
    unpack_banks,
)
from fl.progress import reporter
from fl.setup import SCORES, Split, build_model, cpu_threads, open_split
from src.banks import ClientBank
from src.client import (
    SHARED,
    Stage,
    by_bank,
    by_object,
    calibrate_with,
    extract_features,
    score_with,
    select_bank,
)
from src.data.partition import Partition
from src.evaluation.scored import evaluate, mean_figures

LOCAL = "local-banks"  # the client's own banks, kept in its context from train to evaluate
PARTITION = "partition.json"

log = logging.getLogger("flwr")  # what a SuperNode's own log shows

app = ClientApp()


class CannotTakePart(ValueError):
    """Why a node can do nothing, in words that say nothing of its files."""


class Node:
    """This node in this run: its settings, number, data and model."""

    def __init__(self, message: Message, context: Context) -> None:
        config = dict(message.content[CONFIG])  # settings, and where the run directory is shared
        workspace = str(config.pop("workspace"))
        self.settings: Settings = check_settings(config)
        self.workspace = Path(workspace) if workspace else None
        self.number = node_number(context)
        self.model = build_model(self.settings)
        self.whole = open_split(self.settings, str(context.node_config.get("data-root", "")))
        self.own = self._own()
        self.progress: Stage = reporter(self.workspace, f"client {self.number}")

    def _own(self) -> Split:
        if self.workspace is None:
            return self.whole
        return self.whole.share(Partition.load(self.workspace / PARTITION), self.number)

    def bank_of(self, name: str) -> str:
        """The bank that scores an object."""
        return SHARED if self.settings.model_scope == "shared" else name

    def place(self, side: str, name: str) -> Path | None:
        """Where scores of an object are left for the server, if it shares the run directory."""
        if self.workspace is None:
            return None
        return self.workspace / SCORES / side / name / f"{self.number}.safetensors"


def node_number(context: Context) -> int:
    """The client's number: its partition-id, which every node must have been given."""
    if "partition-id" not in context.node_config:
        raise CannotTakePart("this node has no partition-id: set it in its --node-config")
    return int(context.node_config["partition-id"])


def answering(handle: Callable[[Node, Message, Context], RecordDict]) -> Callable:
    """A handler that answers in words when it fails, and keeps to the client's share of cores."""

    def answer(message: Message, context: Context) -> Message:
        try:
            threads = int(message.content[CONFIG]["cpus-per-client"])  # type: ignore[arg-type]
            with cpu_threads(threads):
                content = handle(Node(message, context), message, context)
        except Exception as error:
            number = int(context.node_config.get("partition-id", -1))
            content = pack_failure(number, _sayable(error, message))
        if TICKET in message.content:
            content[TICKET] = message.content[TICKET]
        return Message(content, reply_to=message)

    return answer


def _sayable(error: Exception, message: Message) -> str:
    """What the server may hear of an error: all in a simulation, else no more than its kind."""
    kind = type(error).__name__
    if isinstance(error, CannotTakePart | ConfigError):  # settings are the server's own
        return str(error)
    if message.content[CONFIG].get("workspace"):
        return f"{kind}: {error}"
    log.error("this client cannot answer", exc_info=error)
    return f"{kind} (the node's own log says more)"


@app.train()
@answering
def train(node: Node, message: Message, context: Context) -> RecordDict:
    """Extract features, select a bank for each object held, send them."""
    if not len(node.own.train):
        raise CannotTakePart("it holds no training images")
    clock = Clock()
    extract_features(node.model, node.own.train, node.progress("features"))
    clock.lap("features")
    banks = _select(node)
    clock.lap("coreset")
    context.state[LOCAL] = pack_banks(_shares(banks))
    fingerprint = node.model.backbone.fingerprint
    return pack_upload(Upload(node.number, fingerprint, version("fedpatchcore"), banks, clock.laps))


@app.evaluate()
@answering
def evaluate_banks(node: Node, message: Message, context: Context) -> RecordDict:
    """Install the merged banks, score this client's test images, calibrate on its normal ones."""
    merged = unpack_banks(message.content[BANKS])  # type: ignore[arg-type]
    clock = Clock()
    extract_features(node.model, node.own.test, node.progress("test features"))
    clock.lap("features")
    calibrations = {
        name: calibrate_with(node.model, merged[name], images, node.progress)
        for name, images in by_bank(node.own.train, node.settings.model_scope).items()
        if name in merged
    }
    federated = score_objects(node, merged, node.own, "federated")
    clock.lap("evaluate")
    results: Results = {
        "client": node.number,
        "federated": federated,
        "calibration": {
            name: {"quantiles": c.quantiles.tolist(), "images": c.images, "radius": c.radius}
            for name, c in calibrations.items()
        },
        "seconds": clock.laps,
    }
    if node.settings.evaluate_baselines:
        results["local"] = score_objects(node, own_banks(node, context), node.whole, "local")
        results["local_images"] = len(node.whole.test)
    return pack_results(results)


def own_banks(node: Node, context: Context) -> dict:
    """The client's own banks: as it made them, or again where the node has forgotten them.

    A SuperNode that was started anew has, and so has every node when a run is resumed.
    """
    if LOCAL in context.state:
        return unpack_banks(context.state[LOCAL])  # type: ignore[arg-type]
    return _shares(_select(node))


def _select(node: Node) -> dict[str, ClientBank]:
    """A bank for each object held, or one for all."""
    settings = node.settings
    return {
        name: select_bank(
            node.model, images, settings.merge_oversample, settings.merge_encoding, node.progress
        )
        for name, images in by_bank(node.own.train, settings.model_scope).items()
    }


def _shares(banks: Mapping[str, ClientBank]) -> dict[str, np.ndarray]:
    """What the client would keep of each bank by itself."""
    return {name: bank.features[: bank.share] for name, bank in banks.items()}


def score_objects(node: Node, banks: dict, data: Split, side: str) -> Side:
    """Figures of the test images, object by object, with the bank of each; and their mean."""
    figures = {}
    for name, images in by_object(data.test).items():
        if node.bank_of(name) not in banks:
            continue
        scored = score_with(node.model, banks[node.bank_of(name)], images, node.progress)
        place = node.place(side, name)
        if place:
            scored.save(place)
        figures[name] = evaluate(node.model, images, scored)
    return {"mean": mean_figures(list(figures.values())), "objects": figures}


class Clock:
    """Seconds of the stages of a job."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap under a stage."""
        now = time.monotonic()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self.last
        self.last = now
