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

from fl.client_state import (
    recall_known,
    recall_own,
    recall_sent,
    recall_standings,
    remember_found,
    remember_own,
    remember_sending,
    remember_standings,
    settle,
    take_found,
    take_in_merged,
)
from fl.config import ConfigError, Settings, check_settings
from fl.messages import (
    ALLOWANCE,
    BANKS,
    CONFIG,
    ROUND,
    TICKET,
    Prospect,
    Results,
    Sender,
    Side,
    Terms,
    Upload,
    pack_failure,
    pack_prospect,
    pack_results,
    pack_upload,
    unpack_allowance,
    unpack_banks,
    unpack_terms,
)
from fl.progress import reporter
from fl.setup import SCORES, Split, build_model, cpu_threads, open_split
from src.banks import Survey
from src.budget import CURVE_POINTS, EXACT_POINTS
from src.client import (
    SHARED,
    Candidates,
    OwnBank,
    Stage,
    by_bank,
    by_object,
    calibrate_with,
    code_bank,
    extract_features,
    find_candidates,
    holding_of,
    score_with,
)
from src.data import InspectionDataset
from src.data.partition import Partition
from src.evaluation.scored import evaluate, mean_figures
from src.exact import farthest_patches, stand_to

REACH = 3.0  # a client looks for so many times the rows that a proportional budget gives it
NO_CURVE = (np.empty(0, np.int64), np.empty(0))
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

    def extract(self, clock: "Clock") -> None:
        """Put the features of its training images into the cache.

        Raises:
            CannotTakePart: there are none.
        """
        if not len(self.own.train):
            raise CannotTakePart("it holds no training images")
        extract_features(self.model, self.own.train, self.progress("features"))
        clock.lap("features")

    def banks(self) -> dict[str, InspectionDataset]:
        """The training images of each bank that it has a part in."""
        return by_bank(self.own.train, self.settings.model_scope)

    def sender(self, clock: "Clock") -> Sender:
        """Who it is, and how long it took."""
        fingerprint = self.model.backbone.fingerprint
        return Sender(self.number, fingerprint, version("fedpatchcore"), clock.laps)

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


@app.query()
@answering
def survey(node: Node, message: Message, context: Context) -> RecordDict:
    """Say what this client holds of each bank and, if asked, how many rows would cover how much."""
    clock, terms = Clock(), terms_of(message)
    node.extract(clock)
    if terms.curves:
        settle(context, terms.heard)
        news = unpack_banks(message.content[BANKS]) if BANKS in message.content else {}  # type: ignore[arg-type]
        merged = take_in_merged(context, news, terms.known)
        if merged is None:
            clock.lap("coreset")
            return pack_prospect(Prospect(node.sender(clock), {}, lost=True))
        if node.settings.exact_in(terms.number) and merged:
            found, points = find_farthest(node, context, merged, terms), EXACT_POINTS
        else:
            found, points = find(node, context, merged, surveyed=True), CURVE_POINTS
        remember_found(context, found)
        surveys = {name: candidates.survey(points) for name, candidates in found.items()}
    else:
        surveys = {
            name: Survey(holding_of(node.model, images), *NO_CURVE)
            for name, images in node.banks().items()
        }
    clock.lap("coreset")
    return pack_prospect(Prospect(node.sender(clock), surveys))


@app.train()
@answering
def train(node: Node, message: Message, context: Context) -> RecordDict:
    """Select a bank for each object held, send as much of it as the budget gives."""
    clock = Clock()
    node.extract(clock)
    found = take_found(context) or find_again(node, message, context)
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
    """Install the merged banks, score this client's test images, calibrate on its normal ones."""
    merged = unpack_banks(message.content[BANKS])  # type: ignore[arg-type]
    clock = Clock()
    extract_features(node.model, node.own.test, node.progress("test features"))
    clock.lap("features")
    settle(context)
    known = recall_known(context)
    calibrations = {
        name: calibrate_with(node.model, merged[name], images, known.get(name), node.progress)
        for name, images in node.banks().items()
        if name in merged
    }
    federated = score_objects(node, merged, node.own, "federated")
    clock.lap("evaluate")
    own = own_banks(node, context) if node.settings.evaluate_baselines else {}
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
    if node.settings.evaluate_baselines:
        results["local"], results["local_images"] = local, len(node.whole.test)
    return pack_results(results)


def terms_of(message: Message) -> Terms:
    """What a request says of its round."""
    return unpack_terms(message.content[ROUND])  # type: ignore[arg-type]


def find(
    node: Node, context: Context, merged: Mapping[str, np.ndarray], surveyed: bool
) -> dict[str, Candidates]:
    """What this client could send of each bank: a coreset of what is not covered yet."""
    settings = node.settings
    reach = (REACH if surveyed else 1.0) * settings.merge_oversample / settings.num_server_rounds
    sent = recall_sent(context)
    covered = {
        name: np.concatenate([rows, sent[name]]) if name in sent else rows
        for name, rows in merged.items()
    }
    return {
        name: find_candidates(
            node.model,
            images,
            reach if name in covered else max(1.0, reach),  # its own bank is among the first ones
            covered.get(name),
            node.progress,
        )
        for name, images in node.banks().items()
    }


def find_again(node: Node, message: Message, context: Context) -> dict[str, Candidates]:
    """The same where the client was not asked before, or has forgotten what it said.

    Raises:
        CannotTakePart: it is a later round's selection that it has forgotten.
    """
    if terms_of(message).number > 1:
        raise CannotTakePart("it was started anew within a round, which it sits out")
    return find(node, context, {}, surveyed=ALLOWANCE in message.content)


def find_farthest(
    node: Node, context: Context, merged: Mapping[str, np.ndarray], terms: Terms
) -> dict[str, Candidates]:
    """What this client could send of each bank in an exact round: the patches farthest from it."""
    before, found, standings = recall_standings(context), {}, {}
    for name, images in node.banks().items():
        standing = before.get(name)
        news = merged[name][terms.known.get(name, 0) if standing else 0 :]
        standing = stand_to(node.model, images, news, standing, node.progress)
        most = terms.step.get(name, 0)
        found[name], standings[name] = farthest_patches(node.model, images, standing, most)
    remember_standings(context, standings)
    return found


def allowed(node: Node, message: Message, found: Mapping[str, Candidates]) -> dict[str, int]:
    """Rows of each bank that this client may send: as the server says, or in proportion."""
    settings = node.settings
    if ALLOWANCE in message.content:
        given = unpack_allowance(message.content[ALLOWANCE])  # type: ignore[arg-type]
        return {name: given.get(name, 0) for name in found}
    part = settings.merge_oversample * settings.model_coreset_percentage
    part = min(1.0, part) / settings.num_server_rounds
    return {
        name: max(1, round(part * candidates.holding.patches)) for name, candidates in found.items()
    }


def own_banks(
    node: Node, context: Context, found: Mapping[str, Candidates] | None = None
) -> dict[str, OwnBank]:
    """The client's own banks: as it made them, or again where the node has forgotten them.

    A SuperNode that was started anew has, and so has every node when a run is resumed.
    """
    own = recall_own(context)
    for name, images in node.banks().items():
        if name not in own:
            fresh = found[name] if found and np.isinf(found[name].before) else None
            own[name] = (fresh or find_candidates(node.model, images)).own()
    remember_own(context, own)
    return own


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
