"""The ClientApp: fit a bank on the images this node holds, install the merged one and score.

Each function decodes, calls `src.federated`, encodes. A failure is answered in words, so that the
server can say which client it was; where data are the node's own, in words that name no file.
"""

import logging
from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl.client.node import CannotTakePart, Clock, Node
from fl.client.selection import allowed, find, find_again, find_more, own_banks, terms_of
from fl.client.state import (
    recall_known,
    remember_found,
    remember_sending,
    settle,
    take_found,
    take_in_merged,
)
from fl.config import ConfigError
from fl.setup.inputs import Split, cpu_threads
from fl.wire.arrays import unpack_banks
from fl.wire.messages import (
    BANKS,
    CONFIG,
    TICKET,
    Prospect,
    Results,
    Side,
    Upload,
    pack_failure,
    pack_prospect,
    pack_results,
    pack_upload,
    unpack_frames,
)
from fl.wire.sums import ASK, pack_sums, unpack_asks
from src.evaluation.score_set import compute_metrics, mean_metrics
from src.federated.allocation import CURVE_POINTS, EXACT_POINTS
from src.federated.candidates import (
    by_object,
    calibrate_with,
    code_bank,
    extract_features,
    holding_of,
    score_with,
)
from src.federated.types import Survey
from src.models.feature_transform import Frame
from src.privacy.records import sums_of

NO_CURVE = (np.empty(0, np.int64), np.empty(0))

log = logging.getLogger("flwr")  # what a SuperNode's own log shows

app = ClientApp()


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


@app.query()
@answering
def survey(node: Node, message: Message, context: Context) -> RecordDict:
    """Say what this client holds of each bank and, if asked, how many rows would cover how much.

    Or give the private sums that are asked for instead.
    """
    clock, terms = Clock(), terms_of(message)
    node.extract(clock)
    if ASK in message.content:
        return private_sums(node, message, clock)
    if terms.curves:
        fresh = settle(context, terms.heard)
        news = unpack_banks(message.content[BANKS]) if BANKS in message.content else {}  # type: ignore[arg-type]
        merged = take_in_merged(context, news, terms.known)
        if merged is None:
            clock.lap("coreset")
            return pack_prospect(Prospect(node.sender(clock), {}, lost=True))
        found = find_more(node, context, terms, merged, fresh) if merged else find(node)
        points = EXACT_POINTS if node.settings.exact_in(terms.number) else CURVE_POINTS
        remember_found(context, found)
        surveys = {name: candidates.survey(points) for name, candidates in found.items()}
    else:
        surveys = {
            name: Survey(holding_of(node.model, images), *NO_CURVE)
            for name, images in node.banks().items()
        }
    clock.lap("coreset")
    return pack_prospect(Prospect(node.sender(clock), surveys))


def private_sums(node: Node, message: Message, clock: Clock) -> RecordDict:
    """The sums over this client's records of what is asked, each record's part bounded."""
    settings, held = node.settings, node.banks()
    by = (settings.privacy_unit, settings.privacy_group)
    sums = {
        name: sums_of(node.model, held[name], ask, *by, node.progress("private sums"))
        for name, ask in unpack_asks(message.content).items()
        if name in held
    }
    clock.lap("coreset")
    return pack_sums(node.sender(clock), sums)


@app.train()
@answering
def train(node: Node, message: Message, context: Context) -> RecordDict:
    """Select a bank for each object held, send as much of it as the budget gives."""
    clock = Clock()
    node.extract(clock)
    found = take_found(context) or find_again(node, message)
    rows = allowed(node, message, found)
    own = own_banks(node, context, found)
    coded = {
        name: code_bank(candidates, rows[name], node.settings.coding, own[name].radius)
        for name, candidates in found.items()
    }
    remember_sending(context, terms_of(message).number, node.settings.coding, found, coded)
    clock.lap("coreset")
    upload = Upload(node.sender(clock), {name: each.bank for name, each in coded.items()})
    return pack_upload(upload, {name: each.parts for name, each in coded.items()})


@app.evaluate()
@answering
def evaluate_banks(node: Node, message: Message, context: Context) -> RecordDict:
    """Install the merged banks, score this client's test images, calibrate on its normal ones.

    With a private mechanism nothing else may tell of the training images: there is no calibration,
    and a bank of this client's own is scored only where all is one simulation.
    """
    private = node.settings.plan is not None
    frames = unpack_frames(message.content)
    merged = unpack_banks(message.content[BANKS])  # type: ignore[arg-type]
    clock = Clock()
    extract_features(node.model, node.own.test, node.progress("test features"))
    clock.lap("features")
    settle(context)
    known = recall_known(context)
    calibrations = {
        name: calibrate_with(node.model, merged[name], images, known.get(name), node.progress)
        for name, images in node.banks().items()
        if name in merged and not private
    }
    federated = score_objects(node, merged, node.own, "federated", frames)
    clock.lap("evaluate")
    alone = node.settings.evaluate_baselines and not (private and node.workspace is None)
    own = own_banks(node, context) if alone else {}
    local = score_objects(node, {n: b.rows for n, b in own.items()}, node.whole, "local")
    clock.lap("local")
    results: Results = {
        "client": node.number,
        "federated": federated,
        "calibration": {
            name: {"quantiles": c.quantiles.tolist(), "images": c.images, "radius": c.radius}
            for name, c in calibrations.items()
        },
        "seconds": clock.laps,
    }
    if alone:
        results["local"], results["local_images"] = local, len(node.whole.test)
    return pack_results(results)


def score_objects(
    node: Node, banks: dict, data: Split, side: str, frames: Mapping[str, Frame] = {}
) -> Side:
    """Figures of the test images, object by object, with the bank of each; and their mean."""
    figures = {}
    for name, images in by_object(data.test).items():
        bank = node.bank_of(name)
        if bank not in banks:
            continue
        scored = score_with(node.model, banks[bank], images, node.progress, frames.get(bank))
        place = node.place(side, name)
        if place:
            scored.save(place)
        figures[name] = compute_metrics(node.model, images, scored)
    return {"mean": mean_metrics(list(figures.values())), "objects": figures}
