"""Carry out runs, several at a time on Ray where there is room for them.

A run is `launch` on the inline engine. One at a time needs no Ray: it goes in this process.
"""

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
from fl.server.ledger_store import ANSWERS
from fl.setup.data import open_split
from fl.setup.model import build_model
from fl.setup.threads import cpu_threads
from fl.sweep.runs import Outcome, Run
from src.errors import UserError
from src.federated.candidates import extract_features
from src.storage.atomic import write_whole

MEMORY = 3 * 2**30  # bytes that a run takes at its peak, with the memory limit at its default
LOOK = 5.0  # seconds after which Ctrl-C is noticed at the latest
STORE = 80 * 2**20  # bytes of Ray's object store, its least: workers leave their results in files
DIED = "its process died, which a lack of memory can cause; try fewer --jobs"
ERROR_LOG = "error.log"  # in the directory of a run that failed


def jobs_here(runs: Sequence[Run]) -> int:
    """How many of these runs this machine carries out at a time: by CPUs, GPUs and free memory."""
    if not runs:
        return 1
    cpus = max(run.settings.cpus_per_client for run in runs)
    share = max(run.settings.gpus_per_client for run in runs)
    limits = [
        len(runs),
        available_cpus() // cpus,
        psutil.virtual_memory().available // MEMORY,
    ]
    if share:
        limits.append(int(torch.cuda.device_count() / share))
    return max(1, min(limits))


def extract_all(runs: Sequence[Run], show: Callable[[int, int], None]) -> dict[str, str]:
    """Put the features that the runs need into the cache, each once.

    Returns:
        name of a run whose images cannot be read, or whose model cannot be built -> why.
    """
    failed: dict[str, str] = {}
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_what_features_are_of(run.settings), []).append(run)
    for group in groups.values():
        try:
            _extract(group[0].settings, show)
        except Exception as error:
            failed |= dict.fromkeys((run.name for run in group), _words(error))
    return failed


def _extract(settings: Settings, show: Callable[[int, int], None]) -> None:
    with cpu_threads(available_cpus()):
        whole = settings.model_copy(update={"data_train_images": 0})  # other runs may draw others
        model, data = build_model(settings), open_split(whole)
        for images in (data.train, data.test):
            extract_features(model, images, show)


def _what_features_are_of(s: Settings) -> tuple[object, ...]:
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


def carry_out(runs: Sequence[Run], jobs: int) -> Iterator[Outcome]:
    """Carry out runs, `jobs` at a time; each as it ends, whichever way."""
    if jobs == 1:
        yield from (Outcome(run, *perform(run.settings)) for run in runs)
    elif runs:
        yield from _on_ray(runs, jobs)


def perform(settings: Settings) -> tuple[float, str]:
    """Seconds that a run took, and why it failed, if it did. A traceback stays in its directory."""
    began = time.monotonic()
    if settings.plan and (Path(settings.out) / ANSWERS).exists():  # what was asked is paid for
        settings = settings.model_copy(update={"resume": True})
    try:
        launch(settings)
    except Exception as error:  # whatever it was, the other runs go on
        with suppress(OSError):
            write_whole(Path(settings.out) / ERROR_LOG, traceback.format_exc())
        return time.monotonic() - began, _words(error)
    return time.monotonic() - began, ""


class Worker:
    """A process of Ray's that carries out one run after another, and keeps the backbone loaded."""

    def perform(self, settings: Settings) -> tuple[float, str]:
        """As the function of this name."""
        return perform(settings)


def _on_ray(runs: Sequence[Run], jobs: int) -> Iterator[Outcome]:
    cpus = max(run.settings.cpus_per_client for run in runs)
    gpus = max(run.settings.gpus_per_client for run in runs)
    left = list(reversed(runs))
    with _ray(jobs * cpus) as ray:
        worker = ray.remote(num_cpus=cpus, num_gpus=gpus)(Worker)
        idle = [worker.remote() for _ in range(min(jobs, len(runs)))]
        running: dict = {}  # what a worker will answer -> its run and itself
        while left or running:
            while left and idle:
                run, actor = left.pop(), idle.pop()
                running[actor.perform.remote(run.settings)] = run, actor
            for answer in ray.wait(list(running), timeout=LOOK)[0]:
                run, actor = running.pop(answer)
                try:
                    outcome = Outcome(run, *ray.get(answer))
                except ray.exceptions.RayError:
                    outcome = Outcome(run, None, DIED)
                    actor = worker.remote()
                idle.append(actor)
                yield outcome


@contextmanager
def _ray(cpus: int) -> Iterator[ModuleType]:
    """Ray on this machine alone, and gone afterwards."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray  # takes seconds, and one job at a time does without

    with private_home() as home:
        try:
            with warnings.catch_warnings():  # that a later Ray will not hide GPUs from who takes 0
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


def _words(error: Exception) -> str:
    """A failure that is a sentence already, or the sentence and what kind of failure it is."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
