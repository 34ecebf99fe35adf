"""A client's answer to the evaluation: metrics and score quantiles, as JSON in `about`."""

import json
import re
from typing import Annotated, Any, NotRequired

from flwr.app import RecordDict
from pydantic import AfterValidator, FiniteFloat, NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on only

from fl.wire.envelope import ABOUT, Sender, pack_reply, unreadable
from fl.wire.surveys import Name
from src.federated.types import QUANTILES

METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "aupro", "aupro_0.05")
BY_LIMIT, LIMIT = "au_spro", re.compile(r"\d\.\d{1,4}")
LONGEST_RESULTS = 2**24  # characters; a thousand objects take two million


def _known_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics that `src.evaluation` computes, each of its kind; others are dropped."""
    known = {name: metrics[name] for name in (*METRICS, BY_LIMIT) if name in metrics}
    odd = [name for name, value in known.items() if isinstance(value, dict) != (name == BY_LIMIT)]
    if odd or not all(LIMIT.fullmatch(limit) for limit in known.get(BY_LIMIT, {})):
        raise ValueError(f"its metrics are of another kind: {odd or BY_LIMIT}")
    return known


Metrics = Annotated[dict[str, FiniteFloat | dict[str, FiniteFloat]], AfterValidator(_known_metrics)]


class ObjectMetrics(TypedDict):
    """Metrics of the test images under one set of banks: by object, and their mean."""

    mean: Metrics
    objects: dict[Name, Metrics]


class CalibrationFields(TypedDict):
    """A `Calibration`."""

    quantiles: list[FiniteFloat]
    images: NonNegativeInt
    radius: FiniteFloat


class Results(TypedDict):
    """What a client measured: with the merged banks and, if asked, with its local ones.

    `local_images` is the number of test images that the local banks were scored on.
    """

    federated: ObjectMetrics
    calibration: dict[Name, CalibrationFields]
    local: NotRequired[ObjectMetrics]
    local_images: NotRequired[NonNegativeInt]


RESULTS: TypeAdapter[Results] = TypeAdapter(Results)


def pack_results(sender: Sender, results: Results) -> RecordDict:
    """A client's results."""
    return pack_reply(sender, results=json.dumps(results))


def unpack_results(content: RecordDict) -> Results:
    """The inverse of `pack_results`.

    Raises:
        BankRefused: the answer cannot be read.
    """
    try:
        text = str(content[ABOUT]["results"])
        if len(text) > LONGEST_RESULTS:
            raise ValueError(f"its results are {len(text)} characters long")
        results = RESULTS.validate_json(text)
        if ("local" in results) != ("local_images" in results):
            raise ValueError("local metrics and the number of their images go together")
        for name, of in results["calibration"].items():
            if len(of["quantiles"]) != (QUANTILES if of["images"] else 0):
                raise ValueError(f"{len(of['quantiles'])} quantiles for {name}")
        return results
    except Exception as error:
        raise unreadable(error) from error
