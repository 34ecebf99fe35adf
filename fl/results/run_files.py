"""The files a run leaves: model, metrics.json, scores.csv, maps, report.html."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fl.config import Settings
from fl.results.baseline import Baseline
from fl.server.checkpoint import MODEL
from fl.server.evaluation import thresholds
from fl.server.state import ServerState
from fl.setup.data import Split
from fl.workspace.directory import METRICS, PARTITION, clear_scratch, load_scores
from src.data import InspectionDataset
from src.data.partition import Partition, partition_table
from src.evaluation.score_set import AnomalyMaps, ScoreSet
from src.federated.bank_set import split_by_object
from src.federated.scoring import score_test_set
from src.models import PatchCore
from src.models.patchcore import Prediction
from src.reporting.maps import save_maps
from src.reporting.run.report import ClientTable, ScoreRow, write_report
from src.storage.run_metrics import RunMetrics


def write_model(out: Path, model: PatchCore, state: ServerState, settings: Settings) -> None:
    """Write the merged banks with their thresholds as a model file."""
    rows = {name: bank.features for name, bank in state.banks.items()}
    transforms = {n: bank.transform for n, bank in state.banks.items() if bank.transform}
    limits = thresholds(state, settings.evaluate_false_alarm_rate)
    model.as_file(rows, limits, transforms).write(out / MODEL)


def write_deployed_run(out: Path, model: PatchCore, metrics: RunMetrics) -> None:
    """Write report and metrics of a run whose server sees no images."""
    counts = [[client.images] for client in metrics.local.clients]
    numbers = [client.client for client in metrics.local.clients]
    table = ClientTable(["training images"], counts, numbers)
    pictures = Pictures(model, InspectionDataset("", out, []), {})
    _write_pages(out, metrics, [], table, pictures)


def write_simulated_run(
    out: Path,
    settings: Settings,
    model: PatchCore,
    metrics: RunMetrics,
    data: Split,
    pooled: Mapping[str, ScoreSet],
    baseline: Baseline | None,
) -> None:
    """Write scores, maps, report and metrics of a simulation, metrics last."""
    partition = Partition.load(out / PARTITION)
    sides = {"federated": pooled} | ({"centralized": baseline.scores} if baseline else {})
    rows = _score_rows(out, settings, partition, data.test, sides)
    _write_scores(out / "scores.csv", rows)
    predictions = ScoreSet.join(pooled.values()).by_key()
    if predictions and settings.evaluate_maps:
        samples = [sample for sample in data.test.samples if sample.key in predictions]
        maps = AnomalyMaps(model, [predictions[sample.key] for sample in samples])
        save_maps(out, maps, samples)
    by = partition.column or None
    columns, counts = partition_table(partition, data.train.samples, by)
    table = ClientTable(columns, counts, by=by or "category")
    _write_pages(out, metrics, rows, table, Pictures(model, data.test, predictions))


def pool_scores(
    out: Path, model: PatchCore, state: ServerState, test: InspectionDataset
) -> dict[str, ScoreSet]:
    """Scores of the whole test set with the merged banks: object -> its images.

    The clients have scored their shares. The server scores what a lost client did not, so that
    metrics are of the same images whoever came through.
    """
    pooled = {}
    for name, images in split_by_object(test).items():
        if state.banks.for_object(name) is None:
            continue
        scores = load_scores(out, "federated", name)
        keys = set(scores.keys)
        rest = images.select([i for i, s in enumerate(images.samples) if s.key not in keys])
        missing = score_test_set(model, state.banks, rest)
        pooled[name] = ScoreSet.join([scores, *missing.values()])
    return pooled


def _write_pages(
    out: Path,
    metrics: RunMetrics,
    rows: list[ScoreRow],
    clients: ClientTable,
    pictures: "Pictures",
) -> None:
    page = out / "report.html"
    write_report(page, metrics, rows, clients, pictures)
    metrics.write(out / METRICS)
    clear_scratch(out)


def _score_rows(
    out: Path,
    settings: Settings,
    partition: Partition,
    test: InspectionDataset,
    sides: Mapping[str, Mapping[str, ScoreSet]],
) -> list[ScoreRow]:
    """Image scores by every bank that the run compares, one row an image."""
    owner = {key: c for c, share in enumerate(partition.clients) for key in share.test}
    federated, centralized = (
        _scores_by_key(ScoreSet.join(sides.get(side, {}).values()))
        for side in ("federated", "centralized")
    )
    local = [
        _scores_by_key(load_scores(out, "local", client=client))
        for client in range(len(partition.clients))
    ]
    return [
        ScoreRow(
            sample.object,
            sample.key,
            sample.label,
            sample.defect,
            owner[sample.key],
            federated[sample.key],
            centralized.get(sample.key),
            [scores.get(sample.key) for scores in local] if settings.evaluate_baselines else None,
        )
        for sample in test.samples
        if sample.key in federated
    ]


def _scores_by_key(scores: ScoreSet) -> dict[str, float]:
    return {key: prediction.score for key, prediction in scores.by_key().items()}


def _write_scores(path: Path, rows: list[ScoreRow]) -> None:
    clients = len(rows[0].local or []) if rows else 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        head = ["object", "image", "label", "defect", "client", "federated", "centralized"]
        writer.writerow(head + [f"local_{i}" for i in range(clients)])
        for row in rows:
            identity = [row.object, row.key, row.label, row.defect, row.client]
            writer.writerow([*identity, row.federated, row.centralized, *(row.local or [])])


class Pictures:
    """What the report shows of an image: the image, its anomaly map, its ground truth."""

    def __init__(
        self, model: PatchCore, test: InspectionDataset, predictions: Mapping[str, Prediction]
    ) -> None:
        self.model, self.test, self.predictions = model, test, predictions
        self.position = {sample.key: i for i, sample in enumerate(test.samples)}

    def image(self, row: ScoreRow) -> np.ndarray:
        """[H, W, 3] uint8."""
        pixels = self.test[self.position[row.key]][0]
        return (pixels * 255).round().byte().permute(1, 2, 0).numpy()

    def map(self, row: ScoreRow) -> np.ndarray:
        """[H, W] float32."""
        return self.model.anomaly_map(self.predictions[row.key])

    def mask(self, row: ScoreRow) -> np.ndarray | None:
        """[H, W] bool, or None if the image has no ground truth."""
        defects = self.test.defects(self.position[row.key])
        return np.any([defect.mask for defect in defects], axis=0) if defects else None
