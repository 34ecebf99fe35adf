"""The run directory: settings, figures, report, model, partition, scores and maps of one run."""

import csv
import fcntl
import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from fl.client.node import PARTITION
from fl.config import ConfigError, Settings
from fl.results.baseline import Baseline
from fl.server.checkpoint import MODEL
from fl.server.private import described
from fl.server.strategy import FederatedPatchCore
from fl.setup.inputs import SCORES, Split, clear_scratch
from src.data import InspectionDataset
from src.data.partition import Partition, partition_table
from src.evaluation.clients import fairness, feature_shift, size_skew, value_skew
from src.evaluation.score_set import AnomalyMaps, ScoreSet, compute_metrics, mean_metrics
from src.federated.candidates import SHARED, by_object, score_with
from src.models import PatchCore
from src.models.patchcore import Prediction
from src.reporting.maps import save_maps
from src.reporting.run.report import ClientTable, ScoreRow, write_report
from src.reporting.run.summary import metric
from src.storage.atomic import write_whole

CONFIG, METRICS = "config.toml", "metrics.json"
PACKAGES = ("fedpatchcore", "flwr", "torch", "timm", "numpy")


def write_config(out: Path, settings: Settings) -> None:
    """Write the settings of a run that begins; what an earlier run found there is no more true.

    That it goes on from another is not written: whoever runs the file again begins anew.
    """
    (out / METRICS).unlink(missing_ok=True)
    write_whole(out / CONFIG, tomli_w.dumps(settings.flat() | {"resume": False}))


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a run directory, so that no other run of this machine writes into it.

    Raises:
        ConfigError: another run holds it.
    """
    lock = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        yield
    except BlockingIOError as error:
        raise ConfigError(f"out = {out}: another run is writing there") from error
    finally:
        os.close(lock)


def write_run(
    out: Path,
    settings: Settings,
    model: PatchCore,
    strategy: FederatedPatchCore,
    data: Split | None,
    pooled: Mapping[str, ScoreSet],
    baseline: Baseline | None,
    beside: Mapping[str, dict],
    seconds: Mapping[str, float],
) -> dict:
    """Write everything a run leaves into `out`; returns metrics.json's content.

    Args:
        data: the whole dataset where the server sees it, else None: figures are then means over
            the clients, and there are neither scores nor maps nor pictures of images.
        pooled: object -> its test images as the merged banks score them.
        baseline: the centralized one, if there is any.
        beside: what else a private bank is compared with: name -> figures.
        seconds: of the rounds, and of the centralized baseline.
    """
    sides = {"federated": pooled} | ({"centralized": baseline.scored} if baseline else {})
    metrics = _frame(settings, strategy, seconds)
    banks = {name: bank.features for name, bank in strategy.merged.items()}
    model.as_file(banks, strategy.thresholds(), strategy.frames).write(out / MODEL)
    if beside:
        metrics["comparators"] = dict(beside)
    found = ScoreSet.join(pooled.values()).by_key()
    if data is None:
        means = [answer["federated"]["mean"] for answer in strategy.results.values()]
        metrics["federated"] = mean_metrics([figures for figures in means if figures])
        test, rows, clients = InspectionDataset("", out, []), [], _image_counts(metrics)
    else:
        test = data.test
        metrics |= _figures(model, strategy, test, pooled, baseline) | {"dataset": _dataset(data)}
        metrics["heterogeneity"] = _heterogeneity(out, data, baseline)
        rows, clients = _score_rows(out, settings, data, sides), _client_table(out, settings, data)
        _write_scores(out / "scores.csv", rows)
    if found and settings.evaluate_maps:
        samples = [sample for sample in test.samples if sample.key in found]
        save_maps(out, AnomalyMaps(model, [found[sample.key] for sample in samples]), samples)
    shown = _Pictures(model, test, found)
    write_report(
        out / "report.html", metrics, rows, clients, shown.image, shown.anomaly_map, shown.mask
    )
    write_whole(out / METRICS, json.dumps(metrics, indent=2) + "\n")  # last: all is there
    clear_scratch(out)
    return metrics


def pool_scores(
    out: Path, model: PatchCore, strategy: FederatedPatchCore, data: Split
) -> dict[str, ScoreSet]:
    """The whole test set as the merged banks score it: object -> its images.

    The clients have scored their shares. What a client that was left out did not score, the
    server does here, so that figures are of the same images whoever came through.
    """
    pooled = {}
    for name, images in by_object(data.test).items():
        folder = out / SCORES / "federated" / name
        scored = ScoreSet.join(ScoreSet.load(path) for path in sorted(folder.glob("*.safetensors")))
        rest = [i for i, sample in enumerate(images.samples) if sample.key not in set(scored.keys)]
        merged = strategy.merged.get(SHARED) or strategy.merged.get(name)
        if merged and rest:
            missing = score_with(model, merged.features, images.select(rest), frame=merged.frame)
            scored = ScoreSet.join([scored, missing])
        if merged:
            pooled[name] = scored
    return pooled


def _figures(
    model: PatchCore,
    strategy: FederatedPatchCore,
    test: InspectionDataset,
    pooled: Mapping[str, ScoreSet],
    baseline: Baseline | None,
) -> dict:
    """Figures of each side: by object, and their means."""
    objects: dict[str, dict] = {}
    for name, images in by_object(test).items():
        figures: dict[str, Any] = {}
        if name in pooled:
            figures["federated"] = compute_metrics(model, images, pooled[name])
        if baseline:
            figures["centralized"] = baseline.figures[name]
        figures["bank"] = _bank(strategy, SHARED if SHARED in strategy.merged else name)
        alone = [r["local"]["objects"].get(name) for r in strategy.results.values() if "local" in r]
        if any(alone):
            figures["local"] = {"mean": mean_metrics([found for found in alone if found])}
        objects[name] = figures
    means = {
        side: mean_metrics([figures[side] for figures in objects.values() if side in figures])
        for side in ("federated", "centralized")
    }
    if baseline:
        means["centralized"]["radius"] = baseline.radius
    return {**{side: mean for side, mean in means.items() if mean}, "objects": objects}


def _heterogeneity(out: Path, data: Split, baseline: Baseline | None) -> dict:
    """How unlike the clients' training images are; in features, where the baseline has seen all."""
    partition = Partition.load(out / PARTITION)
    samples = {sample.key: sample for sample in data.train.samples}
    held = [[samples[key] for key in share.train] for share in partition.clients]
    found = {"size_skew": size_skew([len(mine) for mine in held])}
    column = partition.column
    values = [[s.metadata[column] if column else s.object for s in mine] for mine in held]
    if len({value for mine in values for value in mine}) > 1:
        found["value_skew"] = value_skew(values)
    if baseline:
        owner = {key: i for i, share in enumerate(partition.clients) for key in share.train}
        clients = [owner[sample.key] for sample in data.train.samples]
        found["feature_shift"] = feature_shift(baseline.means, clients)
    return found


def _frame(settings: Settings, strategy: FederatedPatchCore, seconds: Mapping[str, float]) -> dict:
    """metrics.json without the figures of the test set."""
    extra = {"centralized": seconds["centralized"]} if "centralized" in seconds else {}
    thresholds = strategy.thresholds()
    served = {c: metric(r["federated"]["mean"], "image_auroc") for c, r in strategy.results.items()}
    return {
        "config": settings.flat(),
        "local": _local(strategy),
        "bank": _banks_together(strategy),
        "fairness": fairness({c: auroc for c, auroc in served.items() if auroc is not None}),
        "traffic": {
            "upload_bytes": [strategy.intake.upload_bytes[c] for c in sorted(strategy.uploads)],
            "broadcast_bytes": sum(stage["down"] for stage in strategy.intake.stages),
            "stages": strategy.intake.stages,
        },
        "seconds": {**_seconds(strategy, max), **extra, "total": sum(seconds.values())},
        "work": {**_seconds(strategy, sum), **extra},
        "threshold": thresholds.get(SHARED, thresholds),
        "refused": strategy.intake.refused,
        "privacy": described(settings, strategy.books),
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "seed": settings.seed,
    }


def _seconds(strategy: FederatedPatchCore, over: Callable[[list[float]], float]) -> dict:
    """Seconds by stage, over the clients: of the slowest, or of all together."""
    begun = [strategy.client_seconds.get(client, {}) for client in strategy.uploads]
    ended = [result["seconds"] for result in strategy.results.values()]
    took = {
        (stage, i): over([seconds.get(stage, 0.0) for seconds in each] or [0.0])
        for i, each in enumerate((begun, ended))
        for stage in ("features", "coreset", "evaluate", "local")
    }
    return {
        "features": took["features", 0] + took["features", 1],
        "coreset": took["coreset", 0],
        "merge": strategy.seconds,
        "evaluate": took["evaluate", 1],
        "local": took["local", 1],
    }


def _local(strategy: FederatedPatchCore) -> dict:
    """Each client alone: what it holds, and how its own banks do on the test images."""
    clients: list[dict] = []
    for number, upload in sorted(strategy.uploads.items()):
        banks = upload.banks.values()
        result = strategy.results.get(number)
        alone = result["local"]["mean"] if result and "local" in result else {}
        clients.append(
            {
                "client": number,
                "images": sum(bank.holding.images for bank in banks),
                "patches": sum(bank.holding.patches for bank in banks),
                "bank": sum(bank.holding.share for bank in banks),
                "sent": strategy.sent[number],
                **_finite(radius=max(bank.share_radius for bank in banks)),
                **alone,
            }
        )
    local: dict = {"clients": clients}
    scored = [client for client in clients if "image_auroc" in client]
    if scored:
        means = [strategy.results[client["client"]]["local"]["mean"] for client in scored]
        local["mean"] = mean_metrics(means)
        worst = min(scored, key=lambda client: client["image_auroc"])
        local["worst"] = {"client": worst["client"], **means[scored.index(worst)]}
        count = {strategy.results[client["client"]]["local_images"] for client in scored}
        what = f"all {count.pop()} test images" if strategy.workspace else "their own test images"
        several = len(strategy.merged) > 1
        objects = " of the objects they hold" if several else ""
        local["test_images"] = what + objects
    return local


def _bank(strategy: FederatedPatchCore, name: str) -> dict:
    merged = strategy.merged.get(name)
    if merged is None:
        return {}
    return {
        "size": len(merged.features),
        "dim": merged.features.shape[1],
        "dtype": str(merged.features.dtype),
        "bytes": merged.features.nbytes,
        **_finite(radius_bound=merged.radius_bound),
        "radius": strategy.measured_radius(name),
        **({"exact": merged.exact} if merged.exact else {}),
    }


def _finite(**figures: float) -> dict[str, float]:
    """Figures but for those that a private bank does not have."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _banks_together(strategy: FederatedPatchCore) -> dict:
    """All banks as one: sizes add up, a radius holds for all."""
    banks = [_bank(strategy, name) for name in strategy.merged]
    radii = [bank["radius"] for bank in banks]
    exact = sum(bank.get("exact", 0) for bank in banks)
    return {
        "size": sum(bank["size"] for bank in banks),
        "dim": banks[0]["dim"],
        "dtype": banks[0]["dtype"],
        "bytes": sum(bank["bytes"] for bank in banks),
        **_finite(radius_bound=max(bank.get("radius_bound", math.inf) for bank in banks)),
        "radius": None if None in radii else max(radii),
        **({"exact": exact} if exact else {}),
    }


def _score_rows(
    out: Path, settings: Settings, data: Split, sides: Mapping[str, Mapping[str, ScoreSet]]
) -> list[ScoreRow]:
    """The image scores of every bank the run compares, one row an image."""
    partition = Partition.load(out / PARTITION)
    owner = {key: c for c, share in enumerate(partition.clients) for key in share.test}
    found = {
        side: {k: p.score for scored in by_name.values() for k, p in scored.by_key().items()}
        for side, by_name in {"centralized": {}, **sides}.items()
    }
    local = [_local_scores(out, client) for client in range(len(partition.clients))]
    return [
        ScoreRow(
            sample.object,
            sample.key,
            sample.label,
            sample.defect,
            owner[sample.key],
            found["federated"][sample.key],
            found["centralized"].get(sample.key),
            [scores.get(sample.key) for scores in local] if settings.evaluate_baselines else None,
        )
        for sample in data.test.samples
        if sample.key in found["federated"]
    ]


def _local_scores(out: Path, client: int) -> dict[str, float]:
    parts = (out / SCORES / "local").glob(f"*/{client}.safetensors")
    return {k: p.score for path in parts for k, p in ScoreSet.load(path).by_key().items()}


def _write_scores(path: Path, rows: list[ScoreRow]) -> None:
    locals_ = len(rows[0].local or []) if rows else 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        head = ["object", "image", "label", "defect", "client", "federated", "centralized"]
        writer.writerow(head + [f"local_{i}" for i in range(locals_)])
        for row in rows:
            identity = [row.object, row.key, row.label, row.defect, row.client]
            writer.writerow([*identity, row.federated, row.centralized, *(row.local or [])])


def _dataset(data: Split) -> dict:
    return {
        "name": data.test.name,
        "objects": data.test.objects,
        "train_images": len(data.train),
        "test_images": len(data.test),
    }


def _image_counts(metrics: Mapping) -> ClientTable:
    """Clients by what they say they hold, where the server sees no more."""
    clients = metrics["local"]["clients"]
    counts = [[client["images"]] for client in clients]
    return ClientTable(["training images"], counts, [client["client"] for client in clients])


def _client_table(out: Path, settings: Settings, data: Split) -> ClientTable:
    partition = Partition.load(out / PARTITION)
    by = partition.column or None
    columns, counts = partition_table(partition, data.train.samples, by)
    return ClientTable(columns, counts, by=by or "category")


class _Pictures:
    """What the report's gallery shows of an image: itself, its map, its ground truth."""

    def __init__(
        self, model: PatchCore, test: InspectionDataset, found: Mapping[str, Prediction]
    ) -> None:
        self.model, self.test, self.found = model, test, found
        self.position = {sample.key: i for i, sample in enumerate(test.samples)}

    def image(self, row: ScoreRow) -> np.ndarray:
        pixels = self.test[self.position[row.key]][0]
        return (pixels * 255).round().byte().permute(1, 2, 0).numpy()

    def anomaly_map(self, row: ScoreRow) -> np.ndarray:
        return self.model.draw(self.found[row.key])

    def mask(self, row: ScoreRow) -> np.ndarray | None:
        defects = self.test.defects(self.position[row.key])
        return np.any([defect.mask for defect in defects], axis=0) if defects else None
