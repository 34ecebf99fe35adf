"""The ClientApp: each function decodes a message, calls `src.federated`, and encodes the answer.

A client that fails answers with the reason, so that the server can name it. Where the data are the
node's own, the reason names no file.
"""

import logging
from collections.abc import Callable, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl.client.node import CannotTakePart, Node
from fl.client.selection import (
    Rows,
    local_banks,
    quotas_of,
    select_again,
    select_farthest,
    select_first,
    select_residual,
)
from fl.client.state import (
    commit_pending,
    load_sent_pairs,
    pop_candidates,
    save_candidates,
    save_pending,
    update_merged,
)
from fl.config import ConfigError
from fl.extensions import load_extensions
from fl.setup.threads import cpu_threads
from fl.wire.banks import (
    RoundInfo,
    pack_upload,
    unpack_merged,
    unpack_quotas,
    unpack_round,
    unpack_rows,
)
from fl.wire.envelope import CONFIG, TICKET, pack_failure
from fl.wire.results import ObjectMetrics, Results, pack_results
from fl.wire.sums import pack_sums, unpack_queries
from fl.wire.surveys import SurveyReply, pack_curves, pack_holdings
from src.data import InspectionDataset
from src.evaluation.score_set import ScoreSet, mean_metrics
from src.federated.allocation import CURVE_POINTS, EXACT_POINTS
from src.federated.bank_set import split_by_object
from src.federated.calibration import calibrate
from src.federated.candidates import Candidates, client_stats, encode_bank, extract_features
from src.federated.scoring import install, metrics_by_object, score, score_test_set
from src.privacy.records import client_sums

Handler = Callable[[Node, Message, Context], RecordDict]

log = logging.getLogger("flwr")  # the log a SuperNode shows

app = ClientApp()


def answering(handle: Handler) -> Callable[[Message, Context], Message]:
    """Turn a handler into one that answers failures too, and keeps to the client's CPU share."""

    def answer(message: Message, context: Context) -> Message:
        try:
            threads = int(message.content[CONFIG]["cpus-per-client"])  # type: ignore[arg-type]
            with cpu_threads(threads):
                content = handle(Node(message, context), message, context)
        except Exception as error:
            number = int(context.node_config.get("partition-id", -1))
            content = pack_failure(number, _public_reason(error, message))
        if TICKET in message.content:
            content[TICKET] = message.content[TICKET]
        return Message(content, reply_to=message)

    return answer


def _public_reason(error: Exception, message: Message) -> str:
    """What the server may learn of an error: everything in a simulation, else only its kind."""
    kind = type(error).__name__
    if isinstance(error, CannotTakePart | ConfigError):  # the settings are the server's own
        return str(error)
    if message.content[CONFIG].get("workspace"):
        return f"{kind}: {error}"
    log.error("this client cannot answer", exc_info=error)
    return f"{kind} (the node's own log says more)"


@app.query("holdings")
@answering
def holdings(node: Node, message: Message, context: Context) -> RecordDict:
    """Report how many images and patches this client holds for each bank."""
    node.extract_train_features()
    stats = node.train_by_bank.map(lambda images: client_stats(node.model, images))
    node.clock.lap("coreset")
    return pack_holdings(node.sender(), stats)


@app.query("curves")
@answering
def curves(node: Node, message: Message, context: Context) -> RecordDict:
    """Select what the merged banks do not cover yet; report how many rows cover how much."""
    return _report_curves(node, message, context, select_residual, CURVE_POINTS)


@app.query("farthest")
@answering
def farthest(node: Node, message: Message, context: Context) -> RecordDict:
    """Select the patches farthest from the merged banks; report how far they and the others are."""
    return _report_curves(node, message, context, select_farthest, EXACT_POINTS)


def _report_curves(
    node: Node,
    message: Message,
    context: Context,
    select: Callable[[Node, Context, RoundInfo, Rows, Rows], dict[str, Candidates]],
    points: int,
) -> RecordDict:
    node.extract_train_features()
    info = unpack_round(message.content)
    committed = commit_pending(context, info.acked_round)
    merged = update_merged(context, unpack_rows(message.content), info.synced_rows)
    if merged is None:
        node.clock.lap("coreset")
        return pack_curves(node.sender(), SurveyReply({}, stale=True))
    candidates = select(node, context, info, merged, committed) if merged else select_first(node)
    save_candidates(context, candidates)
    reply = SurveyReply({name: each.curve(points) for name, each in candidates.items()})
    node.clock.lap("coreset")
    return pack_curves(node.sender(), reply)


@app.query("sums")
@answering
def sums(node: Node, message: Message, context: Context) -> RecordDict:
    """Answer the queries of a private mechanism with sums over this client's records."""
    node.extract_train_features()
    settings, images = node.settings, node.train_by_bank
    by = (settings.privacy_unit, settings.privacy_group)
    answers = {
        name: client_sums(node.model, images[name], query, *by, node.progress("private sums"))
        for name, query in unpack_queries(message.content).items()
        if name in images
    }
    node.clock.lap("coreset")
    return pack_sums(node.sender(), answers)


@app.train()
@answering
def train(node: Node, message: Message, context: Context) -> RecordDict:
    """Send as many rows of each bank as the quota, or the client's patches, allow."""
    node.extract_train_features()
    info, quotas = unpack_round(message.content), unpack_quotas(message.content)
    candidates = pop_candidates(context) or select_again(node, info, quotas is not None)
    counts = quotas_of(node, quotas, candidates)
    local = local_banks(node, context, candidates)
    encoding = node.settings.merge_encoding
    encoded = {
        name: encode_bank(each, counts[name], encoding, local[name].radius)
        for name, each in candidates.items()
    }
    save_pending(context, info.number, encoding, candidates, encoded)
    node.clock.lap("coreset")
    return pack_upload(node.sender(), encoded)


@app.evaluate()
@answering
def evaluate(node: Node, message: Message, context: Context) -> RecordDict:
    """Install each merged bank once; calibrate on this client's normal images, score its test set.

    In a private run nothing else may tell of the training images: there is no calibration, and the
    local banks are scored only in a simulation.
    """
    private = node.settings.mechanism is not None
    extract_features(node.model, node.data.test, node.progress("test features"))
    node.clock.lap("features")
    commit_pending(context)
    results = _score_merged(node, message, context, calibrated=not private)
    node.clock.lap("evaluate")
    if node.settings.evaluate_baselines and not (private and node.workspace is None):
        banks = local_banks(node, context)
        scores = score_test_set(node.model, banks, node.all_data.test, node.progress)
        results["local"] = _metrics(node, "local", node.all_data.test, scores)
        results["local_images"] = len(node.all_data.test)
        node.clock.lap("local")
    return pack_results(node.sender(), results)


def _score_merged(node: Node, message: Message, context: Context, calibrated: bool) -> Results:
    sent, test = load_sent_pairs(context), split_by_object(node.data.test)
    scores: dict[str, ScoreSet] = {}
    calibrations = {}
    banks = unpack_merged(message.content)
    for name, bank in banks.items():
        install(node.model, bank)
        if calibrated and name in node.train_by_bank:
            images = node.train_by_bank[name]
            each = calibrate(node.model, images, sent.get(name), node.progress)
            calibrations[name] = each
        for of_object, images in test.items():
            if banks.for_object(of_object) is bank:
                scores[of_object] = score(node.model, images, node.progress)
    return {
        "federated": _metrics(node, "federated", node.data.test, scores),
        "calibration": {
            name: {"quantiles": c.quantiles.tolist(), "images": c.images, "radius": c.radius}
            for name, c in calibrations.items()
        },
    }


def _metrics(
    node: Node, side: str, test: InspectionDataset, scores: Mapping[str, ScoreSet]
) -> ObjectMetrics:
    for name, of_object in scores.items():
        node.save_scores(side, name, of_object)
    metrics = metrics_by_object(node.model, test, scores)
    return {"mean": mean_metrics(list(metrics.values())), "objects": metrics}


load_extensions()  # last: they add their own actions to the app
