"""The ServerApp: from the nodes that come, through the rounds, to the run directory."""

import errno
import logging
import time
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fl.client.node import PARTITION, Clock
from fl.config import Settings, check_settings
from fl.results.baseline import centralized
from fl.results.comparators import compare
from fl.results.progress import SERVER, reporter
from fl.results.run_directory import held, pool_scores, write_config, write_run
from fl.results.tracking import check_tracker, track_run
from fl.server.checkpoint import ROUND, keep_merge, take_up_merge
from fl.server.private import check_groups, open_books
from fl.server.replies import RoundFailed
from fl.server.retrying_grid import NodeRegistry, RetryingGrid
from fl.server.strategy import FederatedPatchCore
from fl.setup.inputs import build_model, clear_scratch, open_split, partition_data, run_folder
from src.data import DataError
from src.data.partition import Partition
from src.reporting.run.summary import headline

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
            run_federation(grid, settings, out)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            kept = "its merged bank is kept" if (out / ROUND).exists() else "nothing was merged yet"
            raise RoundFailed(
                f"the run directory {out} cannot be written: {error.strerror}; {kept}. "
                "Make room, then start again with --resume"
            ) from error


def run_federation(grid: Grid, settings: Settings, out: Path) -> None:
    """The rounds themselves, in a run directory that is ours."""
    check_tracker(settings.track)
    books = open_books(settings, out)
    clear_scratch(out)
    write_config(out, settings)
    clock = Clock()
    nodes = wait_for_nodes(grid, settings.clients, settings.timeout)
    progress = reporter(out, SERVER)
    model = build_model(settings)

    data, workspace = None, ""
    if settings.data_shared:
        data, workspace = open_split(settings), str(out)
        goes_on = settings.resume and (out / PARTITION).exists()
        before = Partition.load(out / PARTITION) if goes_on else None
        partition_data(settings, data, len(nodes), before).save(out / PARTITION)

        check_groups(settings, data.train, Partition.load(out / PARTITION))

    registry = NodeRegistry(nodes)
    keep = partial(keep_merge, out=out)
    strategy = FederatedPatchCore(settings, model, registry, workspace, progress, keep, books)
    retrying = RetryingGrid(grid, registry, settings.min_clients or len(nodes))
    broke_off = books and books.had and not (out / ROUND).exists()  # within a private round
    if settings.resume and not broke_off:
        take_up_merge(strategy, out)
        if strategy.done == strategy.rounds and not settings.plan:  # new images would cost anew
            strategy.look_for_growth(retrying)
    strategy.start(retrying, ArrayRecord(), strategy.rounds, settings.timeout)

    pooled = pool_scores(out, model, strategy, data) if data else {}
    baseline = None
    clock.lap("round")
    if data and settings.evaluate_baselines:
        try:
            baseline = centralized(model, data, settings, progress)
        except DataError as error:  # a client that met it was left out; the baseline holds all
            log.error("there is no centralized baseline: %s", error)
        clock.lap("centralized")
    beside = compare(model, data, settings, progress) if data else {}
    metrics = write_run(out, settings, model, strategy, data, pooled, baseline, beside, clock.laps)
    track_run(settings.track, out, metrics)
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
