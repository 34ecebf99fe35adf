"""metrics.json: from the state of a run to its metrics."""

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from fl.config import Settings
from fl.results.baseline import Baseline
from fl.server.evaluation import measured_radius, thresholds
from fl.server.state import ServerState
from fl.setup.data import Split
from fl.workspace.directory import PARTITION
from src.data.partition import Partition
from src.evaluation.clients import fairness, feature_shift, size_skew, value_skew
from src.evaluation.score_set import ScoreSet, mean_metrics
from src.federated.bank_set import SHARED
from src.federated.scoring import metrics_by_object
from src.models import PatchCore
from src.storage.run_metrics import (
    BankInfo,
    CentralizedMetrics,
    DatasetInfo,
    Fairness,
    Heterogeneity,
    LocalClient,
    LocalMetrics,
    MetricSet,
    ObjectMetrics,
    PrivacyReport,
    RunMetrics,
    Seconds,
    Traffic,
    WorstClient,
)

PACKAGES = ("fedpatchcore", "flwr", "torch", "timm", "numpy")


def federation_metrics(
    settings: Settings,
    state: ServerState,
    privacy: PrivacyReport,
    seconds: Mapping[str, float],
    simulated: bool,
) -> RunMetrics:
    """Metrics of a run as the clients report them.

    Args:
        settings: of the run.
        state: after the evaluation.
        privacy: what the run guarantees.
        seconds: of the rounds ("round") and of the centralized baseline ("centralized").
        simulated: whether server and clients share the data.
    """
    limits = thresholds(state, settings.evaluate_false_alarm_rate)
    means = {client: r["federated"]["mean"] for client, r in state.results.items()}
    aurocs: dict = {c: m["image_auroc"] for c, m in means.items() if "image_auroc" in m}
    federated = mean_metrics([mean for mean in means.values() if mean])
    return RunMetrics(
        config=settings.flat(),
        local=_local(state, simulated),
        bank=_all_banks(state),
        fairness=Fairness(**fairness(aurocs)),
        traffic=Traffic(
            upload_bytes=[state.traffic.clients[client].upload_bytes for client in state.clients],
            broadcast_bytes=sum(stage.down for stage in state.traffic.stages),
            stages=list(state.traffic.stages),
        ),
        seconds=_seconds(state, max, seconds, total=sum(seconds.values())),
        work=_seconds(state, sum, seconds),
        threshold=limits.get(SHARED, dict(limits)),
        refused=list(state.traffic.refused),
        privacy=privacy,
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        seed=settings.seed,
        federated=None if simulated else MetricSet.model_validate(federated),
    )


def with_test_set(
    metrics: RunMetrics,
    model: PatchCore,
    state: ServerState,
    data: Split,
    pooled: Mapping[str, ScoreSet],
    baseline: Baseline | None,
) -> RunMetrics:
    """Add what only a simulation knows: metrics over the whole test set, object by object.

    Args:
        metrics: as the clients report them.
        model: draws anomaly maps.
        state: after the evaluation.
        data: all images.
        pooled: object -> scores of its test images with the merged banks.
        baseline: the centralized one, if any.
    """
    federated = metrics_by_object(model, data.test, pooled)
    centralized = baseline.metrics if baseline else {}
    objects = {}
    for name in data.test.objects:
        alone = [r["local"]["objects"].get(name) for r in state.results.values() if "local" in r]
        local = mean_metrics([each for each in alone if each])
        objects[name] = ObjectMetrics(
            federated=_metric_set(federated.get(name)),
            centralized=_metric_set(centralized.get(name)),
            bank=_bank_of(state, name),
            local=LocalMetrics(mean=_metric_set(local)) if local else None,
        )
    mean = mean_metrics(list(centralized.values()))
    return metrics.model_copy(
        update={
            "federated": MetricSet.model_validate(mean_metrics(list(federated.values()))),
            "centralized": CentralizedMetrics.model_validate({**mean, "radius": baseline.radius})
            if baseline
            else None,
            "objects": objects,
            "dataset": DatasetInfo(
                name=data.test.name,
                objects=list(data.test.objects),
                train_images=len(data.train),
                test_images=len(data.test),
            ),
        }
    )


def heterogeneity(out: Path, data: Split, baseline: Baseline | None) -> Heterogeneity:
    """How much the clients' training images differ; in features where the baseline has seen all."""
    partition = Partition.load(out / PARTITION)
    samples = {sample.key: sample for sample in data.train.samples}
    images = [[samples[key] for key in share.train] for share in partition.clients]
    column = partition.column
    values = [[s.metadata[column] if column else s.object for s in mine] for mine in images]
    distinct = {value for mine in values for value in mine}
    shift = None
    if baseline:
        owner = {key: i for i, share in enumerate(partition.clients) for key in share.train}
        clients = [owner[sample.key] for sample in data.train.samples]
        shift = feature_shift(baseline.means, clients)
    return Heterogeneity(
        size_skew=size_skew([len(mine) for mine in images]),
        value_skew=value_skew(values) if len(distinct) > 1 else None,
        feature_shift=shift,
    )


def _metric_set(metrics: Mapping | None) -> MetricSet | None:
    return MetricSet.model_validate(metrics) if metrics else None


def _seconds(
    state: ServerState,
    over: Callable[[list[float]], float],
    server: Mapping[str, float],
    total: float | None = None,
) -> Seconds:
    """Seconds by stage: of the slowest client (max), or of all together (sum)."""
    clients = [each.seconds for each in state.traffic.clients.values()]
    stages = {
        stage: over([seconds.get(stage, 0.0) for seconds in clients] or [0.0])
        for stage in ("features", "coreset", "evaluate", "local")
    }
    return Seconds(
        **stages, merge=state.merge_seconds, centralized=server.get("centralized"), total=total
    )


def _local(state: ServerState, simulated: bool) -> LocalMetrics:
    """Each client alone: what it holds, and how its local banks do on the test images."""
    alone = {c: r["local"]["mean"] for c, r in state.results.items() if "local" in r}
    clients = [
        LocalClient.model_validate(
            {
                "client": number,
                "images": sum(stats.images for stats in record.stats.values()),
                "patches": sum(stats.patches for stats in record.stats.values()),
                "bank": sum(stats.share for stats in record.stats.values()),
                "sent": record.sent_rows,
                "radius": max((b.share_radius for b in record.banks.values()), default=None),
                **alone.get(number, {}),
            }
        )
        for number, record in state.clients.items()
    ]
    scored = [client for client in clients if client.image_auroc is not None]
    if not scored:
        return LocalMetrics(clients=clients)
    worst = min(scored, key=lambda client: client.image_auroc or 0.0).client
    counts = {state.results[client.client]["local_images"] for client in scored}
    test = f"all {counts.pop()} test images" if simulated else "their own test images"
    return LocalMetrics(
        clients=clients,
        mean=_metric_set(mean_metrics([alone[client.client] for client in scored])),
        worst=WorstClient.model_validate({"client": worst, **alone[worst]}),
        test_images=test + (" of the objects they hold" if len(state.banks) > 1 else ""),
    )


def _bank_of(state: ServerState, object_name: str) -> BankInfo | None:
    name = SHARED if SHARED in state.banks else object_name
    return _bank(state, name) if name in state.banks else None


def _bank(state: ServerState, name: str) -> BankInfo:
    bank = state.banks[name]
    return BankInfo(
        size=len(bank.features),
        dim=bank.features.shape[1],
        dtype=str(bank.features.dtype),
        bytes=bank.features.nbytes,
        radius_bound=bank.certificate.radius_bound if bank.certificate else None,
        radius=measured_radius(state, name),
        exact=bank.certificate.exact_rows if bank.certificate else 0,
    )


def _all_banks(state: ServerState) -> BankInfo:
    """All banks as one: sizes add up, and a radius holds for all of them."""
    banks = [_bank(state, name) for name in state.banks]
    return BankInfo(
        size=sum(bank.size for bank in banks),
        dim=banks[0].dim,
        dtype=banks[0].dtype,
        bytes=sum(bank.bytes for bank in banks),
        radius_bound=_largest([bank.radius_bound for bank in banks]),
        radius=_largest([bank.radius for bank in banks]),
        exact=sum(bank.exact for bank in banks),
    )


def _largest(radii: list[float | None]) -> float | None:
    """The largest radius; None if one is unknown."""
    known = [radius for radius in radii if radius is not None]
    return max(known) if len(known) == len(radii) else None
