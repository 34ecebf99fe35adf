"""Execute the runs of a sweep on the inline engine, in this process or several at a time on Ray."""

import logging
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import psutil
import torch

from fl.config import Settings
from fl.engines.launch import launch
from fl.engines.processes import private_home
from fl.engines.ray import available_cpus
from fl.server.ledger_store import REPLIES
from fl.setup.data import open_split
from fl.setup.model import build_model
from fl.setup.threads import cpu_threads
from fl.sweep.runs import Outcome, Run
from src.errors import UserError
from src.federated.candidates import extract_features
from src.storage.atomic import write_whole

MEMORY = 3 * 2**30  # bytes; the peak of a run with the default memory limit
POLL = 5.0  # seconds; the longest time until Ctrl-C is noticed
STORE = 80 * 2**20  # bytes; the least for Ray's object store: workers write their results to files
DIED = "its process died, perhaps for lack of memory; try fewer --jobs"
ERROR_LOG = "error.log"  # in the directory of a run that failed


def max_jobs(runs: Sequence[Run]) -> int:
    """How many of these runs fit this machine at a time, by CPUs, GPUs and free memory."""
    if not runs:
        return 1
    cpus = max(run.settings.cpus_per_client for run in runs)
    gpus = max(run.settings.gpus_per_client for run in runs)
    limits = [
        len(runs),
        available_cpus() // cpus,
        psutil.virtual_memory().available // MEMORY,
    ]
    if gpus:
        limits.append(int(torch.cuda.device_count() / gpus))
    return max(1, min(limits))


def extract_all(runs: Sequence[Run], show: Callable[[int, int], None]) -> dict[str, str]:
    """Extract the features of all runs into the cache, once for runs that share them.

    Returns:
        errors by run name, for runs whose images cannot be read or whose model cannot be built.
    """
    errors: dict[str, str] = {}
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_feature_settings(run.settings), []).append(run)
    for group in groups.values():
        try:
            _extract(group[0].settings, show)
        except Exception as error:
            errors |= dict.fromkeys((run.name for run in group), _describe(error))
    return errors


def _extract(settings: Settings, show: Callable[[int, int], None]) -> None:
    with cpu_threads(available_cpus()):
        whole = settings.model_copy(
            update={"data_train_images": 0}
        )  # other runs may draw other images
        model, data = build_model(settings), open_split(whole)
        for images in (data.train, data.test):
            extract_features(model, images, show)


def _feature_settings(s: Settings) -> tuple[object, ...]:
    """The settings that the features depend on."""
    model = (s.model_backbone, s.model_layers, s.model_weights)
    data = (
        s.data_kind,
        s.data_root,
        s.data_objects,
        s.data_image_size,
        s.data_crop,
        s.data_normalize_brightness,
    )
    return (*model, *data, s.cache_dir)


def execute_runs(runs: Sequence[Run], jobs: int) -> Iterator[Outcome]:
    """Execute runs, `jobs` at a time; yields each outcome as its run ends."""
    if jobs == 1:
        yield from (Outcome(run, *perform(run.settings)) for run in runs)
    elif runs:
        yield from _on_ray(runs, jobs)


def perform(settings: Settings) -> tuple[float, str]:
    """Execute a run; returns its seconds and its error, with the traceback in its directory."""
    start = time.monotonic()
    # the budget of these noisy sums is spent: use them again
    if settings.mechanism and (Path(settings.out) / REPLIES).exists():
        settings = settings.model_copy(update={"resume": True})
    try:
        launch(settings)
    except Exception as error:  # the other runs go on
        with suppress(OSError):
            write_whole(Path(settings.out) / ERROR_LOG, traceback.format_exc())
        return time.monotonic() - start, _describe(error)
    return time.monotonic() - start, ""


class Worker:
    """A Ray actor that executes one run after another and keeps the backbone loaded."""

    def perform(self, settings: Settings) -> tuple[float, str]:
        """See the function `perform`."""
        return perform(settings)


def _on_ray(runs: Sequence[Run], jobs: int) -> Iterator[Outcome]:
    cpus = max(run.settings.cpus_per_client for run in runs)
    gpus = max(run.settings.gpus_per_client for run in runs)
    queue = list(reversed(runs))
    with _ray(jobs * cpus) as ray:
        worker = ray.remote(num_cpus=cpus, num_gpus=gpus)(Worker)
        idle = [worker.remote() for _ in range(min(jobs, len(runs)))]
        running: dict = {}  # future -> run and actor
        while queue or running:
            while queue and idle:
                run, actor = queue.pop(), idle.pop()
                running[actor.perform.remote(run.settings)] = run, actor
            for future in ray.wait(list(running), timeout=POLL)[0]:
                run, actor = running.pop(future)
                try:
                    outcome = Outcome(run, *ray.get(future))
                except ray.exceptions.RayError:
                    outcome = Outcome(run, None, DIED)
                    actor = worker.remote()
                idle.append(actor)
                yield outcome


@contextmanager
def _ray(cpus: int) -> Iterator[ModuleType]:
    """Start Ray on this machine, and stop it afterwards."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray  # takes seconds; a single job does not need it

    with private_home() as home:
        try:
            with warnings.catch_warnings():  # on how a later Ray treats tasks without GPUs
                warnings.simplefilter("ignore", FutureWarning)
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=STORE,
                    _temp_dir=str(home),
                )
            yield ray
        finally:
            ray.shutdown()


def _describe(error: Exception) -> str:
    """The message of an error; for an unexpected one, with its type."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
