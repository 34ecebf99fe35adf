"""The ServerApp: load, fit, send, merge, broadcast, evaluate, report."""

import errno
import logging
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl.config import ConfigError, Settings, check_settings
from fl.results.baseline import centralized
from fl.results.comparators import compare
from fl.results.metrics import federation_metrics, heterogeneity, with_test_set
from fl.results.run_files import pool_scores, write_deployed_run, write_model, write_simulated_run
from fl.results.tracking import check_tracker, track_run
from fl.server.checkpoint import ROUND, Checkpoint
from fl.server.federation import Federation, RoundFailed
from fl.server.ledger_store import LEDGER
from fl.server.protocols import Protocol, protocol_class
from fl.server.retrying_grid import NodeRegistry, RetryingGrid
from fl.server.state import ServerState
from fl.server.strategy import run_rounds
from fl.setup.data import Split, check_groups, open_split, partition_data
from fl.setup.model import build_model
from fl.workspace.directory import PARTITION, begin_run, locked, run_folder
from fl.workspace.progress import SERVER, Clock, reporter
from src.data import DataError
from src.data.partition import Partition
from src.reporting.run.summary import headline
from src.storage.run_metrics import MetricSet

POLL = 0.2  # seconds between two looks at the connected nodes

log = logging.getLogger("flwr")  # what `flwr run --stream` shows

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation in its run directory."""
    settings = check_settings(context.run_config)
    out = run_folder(settings, context.run_id)
    with locked(out):
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
    """Run all rounds and write the results.

    Whatever can be refused is refused before anything of an earlier run is deleted.
    """
    check_tracker(settings.track)
    protocol = open_protocol(settings, out)
    begin_run(out, settings)
    clock = Clock()
    nodes = wait_for_nodes(grid, settings.clients, settings.timeout)
    model = build_model(settings)
    data = share_data(settings, out, len(nodes)) if settings.data_shared else None
    registry = NodeRegistry(nodes)
    federation = Federation(
        settings,
        model,
        RetryingGrid(grid, registry, settings.min_clients or len(nodes)),
        registry,
        workspace=str(out) if data else "",
        progress=reporter(out, SERVER),
    )
    resume = settings.resume and not protocol.has_unfinished_round
    state = run_rounds(federation, protocol, Checkpoint(out, model), resume)
    report(federation, protocol, state, data, out, clock)


def report(
    federation: Federation,
    protocol: Protocol,
    state: ServerState,
    data: Split | None,
    out: Path,
    clock: Clock,
) -> None:
    """Write the results of a run; with the data at hand, also those of its baselines."""
    settings, model, progress = federation.settings, federation.model, federation.progress
    pooled = pool_scores(out, model, state, data.test) if data else {}
    clock.lap("round")
    baseline = None
    if data and settings.evaluate_baselines:
        try:
            baseline = centralized(model, data, settings, progress)
        except DataError as error:  # a client that met it was left out; the baseline needs all
            log.error("there is no centralized baseline: %s", error)
        clock.lap("centralized")
    comparators = compare(model, data, settings, progress) if data else {}
    write_model(out, model, state, settings)
    metrics = federation_metrics(
        settings, state, protocol.privacy_report(), clock.laps, simulated=data is not None
    )
    if data is None:
        write_deployed_run(out, model, metrics)
    else:
        metrics = with_test_set(metrics, model, state, data, pooled, baseline)
        more = {
            "comparators": {n: MetricSet.model_validate(m) for n, m in comparators.items()},
            "heterogeneity": heterogeneity(out, data, baseline),
        }
        metrics = metrics.model_copy(update=more)
        write_simulated_run(out, settings, model, metrics, data, pooled, baseline)
    track_run(settings.track, out, metrics)
    log.info("%s\nrun directory: %s", headline(metrics), out)


def open_protocol(settings: Settings, out: Path) -> Protocol:
    """The protocol of a run.

    Raises:
        ConfigError: the settings do not suit it, or an ordinary run would stand beside the ledger
            of a private one.
    """
    if settings.privacy_mechanism == "none" and (out / LEDGER).exists():
        raise ConfigError(
            f"{out} holds the ledger of a private run: an ordinary run there would release "
            "what it protects; name another directory as out"
        )
    return protocol_class(settings)(settings, out)


def share_data(settings: Settings, out: Path, clients: int) -> Split:
    """Open the data of a simulation and write its partition into the run directory."""
    data = open_split(settings)
    resumed = settings.resume and (out / PARTITION).exists()
    before = Partition.load(out / PARTITION) if resumed else None
    partition = partition_data(settings, data, clients, before)
    partition.save(out / PARTITION)
    check_groups(settings, data.train, partition)
    return data


def wait_for_nodes(grid: Grid, wanted: int, timeout: float) -> list[int]:
    """Wait for the nodes; if none are `wanted`, until their number stays the same.

    Returns:
        their ids, ascending.

    Raises:
        RoundFailed: too few came within the timeout (seconds), or more than are wanted.
    """
    deadline = time.monotonic() + timeout
    before: list[int] = []
    while True:
        nodes = sorted(grid.get_node_ids())
        if nodes and (len(nodes) == wanted or (not wanted and nodes == before)):
            return nodes
        if wanted and len(nodes) > wanted:
            raise RoundFailed(f"{len(nodes)} nodes are connected, but clients = {wanted}")
        if time.monotonic() > deadline:
            raise RoundFailed(
                f"{len(nodes)} of {wanted or 'any number of'} nodes came within {timeout} s; "
                f"start more, or set clients to how many there are"
            )
        before = nodes
        time.sleep(POLL)
