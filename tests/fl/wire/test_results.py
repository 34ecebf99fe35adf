"""A client's results come back as they were packed; anything else is refused."""

import json
import math

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fl.wire.envelope import ABOUT, client_number, unpack_sender
from fl.wire.results import pack_results, unpack_results
from src.federated.types import BankRefused
from tests.fl.wire.samples import SENDER

CALIBRATION = {"quantiles": [0.5] * 101, "images": 7, "radius": 2.0}


def results(**changes: object) -> dict:
    return {
        "federated": {
            "mean": {"image_auroc": 0.75, "au_spro": {"0.05": 0.5}},
            "objects": {"bracket": {"image_auroc": 0.75}},
        },
        "calibration": {"bracket": CALIBRATION},
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"local": {"mean": {}, "objects": {}}, "local_images": 12},
        {"calibration": {}, "federated": {"mean": {}, "objects": {}}},
        {"calibration": {"bracket": {"quantiles": [], "images": 0, "radius": 1.0}}},
    ],
)
def test_results_come_back_as_they_were_packed(changes: dict) -> None:
    content = pack_results(SENDER, results(**changes))
    assert unpack_results(content) == results(**changes)
    assert unpack_sender(content).client == SENDER.client


def test_an_unknown_metric_is_not_read() -> None:
    content = pack_results(SENDER, results(federated={"mean": {"<b>": 1.0}, "objects": {}}))
    assert unpack_results(content)["federated"]["mean"] == {}


@pytest.mark.parametrize(
    "changed",
    [
        [],
        {},
        results(federated=None),
        results(federated={"mean": {}}),
        results(federated={"mean": {"image_auroc": "high"}, "objects": {}}),
        results(federated={"mean": {"image_auroc": math.nan}, "objects": {}}),
        results(federated={"mean": {"au_spro": 0.5}, "objects": {}}),
        results(federated={"mean": {"au_spro": {"../x": 0.5}}, "objects": {}}),
        results(federated={"mean": {}, "objects": {"a\nb": {}}}),
        results(calibration={"x" * 101: CALIBRATION}),
        results(calibration=[]),
        results(calibration={"bracket": {**CALIBRATION, "quantiles": [0.5] * 50}}),
        results(calibration={"bracket": {**CALIBRATION, "images": 0}}),
        results(calibration={"bracket": {**CALIBRATION, "images": -7}}),
        results(calibration={"bracket": {**CALIBRATION, "radius": math.inf}}),
        results(local={"mean": 0.5}),
        results(local={"mean": {}, "objects": {}}),
    ],
)
def test_results_that_no_client_sends_are_refused(changed) -> None:
    about = ConfigRecord({"client": 3, "results": json.dumps(changed)})
    with pytest.raises(BankRefused, match=r"^its reply cannot be read \("):
        unpack_results(RecordDict({ABOUT: about}))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({ABOUT: ConfigRecord({"client": 3})}),
        RecordDict({ABOUT: ConfigRecord({"client": 3, "results": "{"})}),
        RecordDict({ABOUT: ConfigRecord({"client": 3, "results": 5})}),
        RecordDict({ABOUT: MetricRecord({"client": 3})}),
    ],
)
def test_results_that_cannot_be_read_are_refused(content: RecordDict) -> None:
    with pytest.raises(BankRefused):
        unpack_results(content)
    assert client_number(content) in (3, None)
