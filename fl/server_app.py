"""The ServerApp: one round, from the nodes that come to the run directory."""

import errno
import logging
import time
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fl.checkpoint import ROUND, keep_merge, take_up_merge
from fl.client_app import PARTITION, Clock
from fl.config import Settings, check_settings
from fl.exchange import Exchange, Roster
from fl.progress import SERVER, reporter
from fl.run_directory import held, pool_scores, write_config, write_run
from fl.setup import Split, build_model, clear_scratch, open_split, partition_data, run_folder
from fl.strategy import FederatedPatchCore, RoundFailed
from src.client import Stage, by_bank, by_object, extract_features, score_with, select_bank
from src.data import DataError
from src.evaluation.scored import Scored
from src.evaluation.summary import headline
from src.models import PatchCore

POLL = 0.2  # seconds between two looks at who is there

log = logging.getLogger("flwr")  # what `flwr run --stream` shows

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Load, fit, send, merge, broadcast, evaluate, report."""
    settings = check_settings(context.run_config)
    out = run_folder(settings, context.run_id)
    with held(out):
        try:
            run_round(grid, settings, out)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            kept = "its merged bank is kept" if (out / ROUND).exists() else "nothing was merged yet"
            raise RoundFailed(
                f"the run directory {out} cannot be written: {error.strerror}; {kept}. "
                "Make room, then start again with --resume"
            ) from error


def run_round(grid: Grid, settings: Settings, out: Path) -> None:
    """The round itself, in a run directory that is ours."""
    clear_scratch(out)
    write_config(out, settings)
    clock = Clock()
    nodes = wait_for_nodes(grid, settings.clients, settings.timeout)
    progress = reporter(out, SERVER)
    model = build_model(settings)

    data, workspace = None, ""
    if settings.data_shared:
        data, workspace = open_split(settings), str(out)
        partition_data(settings, data, len(nodes)).save(out / PARTITION)

    roster = Roster(nodes)
    keep = partial(keep_merge, out=out)
    strategy = FederatedPatchCore(settings, model, roster, workspace, progress, keep)
    if settings.resume:
        take_up_merge(strategy, out)
    patient = Exchange(grid, roster, settings.min_clients or len(nodes))
    strategy.start(patient, ArrayRecord(), settings.num_server_rounds, settings.timeout)

    sides = {"federated": pool_scores(out, model, strategy, data)} if data else {}
    clock.lap("round")
    if data and settings.evaluate_baselines:
        try:
            sides["centralized"] = centralize(model, data, settings, progress)
        except DataError as error:  # a client that met it was left out; the baseline holds all
            log.error("there is no centralized baseline: %s", error)
        clock.lap("centralized")
    metrics = write_run(out, settings, model, strategy, data, sides, clock.laps)
    log.info("%s\nrun directory: %s", headline(metrics), out)


def wait_for_nodes(grid: Grid, wanted: int, timeout: float) -> list[int]:
    """Node ids, once as many are there as are wanted (0: any, once their number stays the same).

    Raises:
        RoundFailed: they did not come within the timeout, or more came than are wanted.
    """
    ends = time.monotonic() + timeout
    before: list[int] = []
    while True:
        nodes = sorted(grid.get_node_ids())
        if nodes and (len(nodes) == wanted or (not wanted and nodes == before)):
            return nodes
        if wanted and len(nodes) > wanted:
            raise RoundFailed(f"{len(nodes)} nodes are connected, but clients = {wanted}")
        if time.monotonic() > ends:
            raise RoundFailed(
                f"{len(nodes)} of {wanted or 'any number of'} nodes came within {timeout} s; "
                f"start more, or set clients to how many there are"
            )
        before = nodes
        time.sleep(POLL)


def centralize(
    model: PatchCore, data: Split, settings: Settings, progress: Stage
) -> dict[str, Scored]:
    """The baseline that no federation can have: one client that holds all images.

    Returns:
        object name -> its test images as the centralized bank scores them.
    """
    extract_features(model, data.train, progress("features"))
    banks = {
        name: select_bank(model, images, 1.0, settings.merge_encoding, progress).features
        for name, images in by_bank(data.train, settings.model_scope).items()
    }
    only = next(iter(banks.values()))  # the shared one, where objects have none of their own
    return {
        name: score_with(model, banks.get(name, only), images, progress)
        for name, images in by_object(data.test).items()
    }
