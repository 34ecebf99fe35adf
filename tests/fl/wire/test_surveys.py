"""Holdings and radius curves come back as they were packed; other answers are refused."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl.wire.envelope import ABOUT, unpack_sender, wire_bytes
from fl.wire.surveys import (
    SurveyReply,
    pack_curves,
    pack_holdings,
    unpack_curves,
    unpack_holdings,
)
from src.federated.allocation import CURVE_POINTS, curve_counts
from src.federated.types import BankRefused, ClientStats, RadiusCurve
from tests.fl.wire.samples import SENDER, names, senders, stats

points = st.lists(st.floats(0, 1e6), max_size=9).map(
    lambda r: (np.arange(len(r)), np.sort(np.array(r))[::-1])
)
curves = st.builds(lambda of_client, curve: RadiusCurve(of_client, *curve), stats, points)
replies = st.builds(SurveyReply, st.dictionaries(names, curves, max_size=3), st.booleans())


@given(senders, st.dictionaries(names, stats, max_size=3))
def test_holdings_come_back(sender, holdings: dict) -> None:
    content = pack_holdings(sender, holdings)
    assert unpack_holdings(content) == holdings
    assert unpack_sender(content) == sender


@given(senders, replies)
def test_curves_come_back_with_radii_to_six_digits(sender, reply: SurveyReply) -> None:
    content = pack_curves(sender, reply)
    received = unpack_curves(content)
    assert (unpack_sender(content), received.stale) == (sender, reply.stale)
    assert list(received.curves) == list(reply.curves)
    for name, curve in reply.curves.items():
        assert received.curves[name].stats == curve.stats
        np.testing.assert_array_equal(received.curves[name].counts, curve.counts)
        np.testing.assert_allclose(received.curves[name].radii, curve.radii, rtol=1e-5)


def test_the_curve_of_a_large_client_takes_less_than_four_kilobytes() -> None:
    counts = curve_counts(2_000_000, 1)
    large = RadiusCurve(ClientStats(1000, 10**9, 10**6), counts, 123.456789 / np.sqrt(counts))
    assert wire_bytes(pack_curves(SENDER, SurveyReply({"bracket": large}))) < 4000


COUNTS = {"images": 1, "patches": 5, "share": 2}
LONG = [*range(CURVE_POINTS + 3)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("holdings", "{"),
        ("holdings", {"bracket": {**COUNTS, "images": -1}}),
        ("holdings", {"bracket": {"images": 1}}),
        ("holdings", {"a\nb": COUNTS}),
        ("curves", {"bracket": COUNTS}),
        ("curves", {"bracket": {**COUNTS, "counts": [0, -1], "radii": [1.0, 0.5]}}),
        ("curves", {"bracket": {**COUNTS, "counts": [0, 1], "radii": [1.0, None]}}),
        ("curves", {"bracket": {**COUNTS, "counts": LONG, "radii": LONG}}),
    ],
)
def test_answers_that_cannot_be_read_are_refused(field: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    content = RecordDict({ABOUT: ConfigRecord({"client": 3, "stale": False, field: text})})
    unpack = unpack_holdings if field == "holdings" else unpack_curves
    with pytest.raises(BankRefused, match=r"^its reply cannot be read \("):
        unpack(content)
