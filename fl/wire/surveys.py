"""Answers to queries: what a client holds, and its radius curves, as JSON in `about`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
from flwr.app import RecordDict
from pydantic import AfterValidator, FiniteFloat, NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on only

from fl.wire.envelope import ABOUT, Sender, check_name, pack_reply, unreadable
from src.federated.allocation import CURVE_POINTS
from src.federated.types import ClientStats, RadiusCurve

Name = Annotated[str, AfterValidator(check_name)]


class StatsFields(TypedDict):
    """A `ClientStats`."""

    images: NonNegativeInt
    patches: NonNegativeInt
    share: NonNegativeInt


class CurveFields(StatsFields):
    """A `RadiusCurve`."""

    counts: list[NonNegativeInt]
    radii: list[FiniteFloat]


HOLDINGS = TypeAdapter(dict[Name, StatsFields])
CURVES = TypeAdapter(dict[Name, CurveFields])


@dataclass(frozen=True)
class SurveyReply:
    """A client's radius curves by bank name."""

    curves: Mapping[str, RadiusCurve]  # empty if the reply is stale
    # the client restarted and lost rows of the merged bank that the server thinks it has; they must
    # be sent again
    stale: bool = False


def pack_holdings(sender: Sender, holdings: Mapping[str, ClientStats]) -> RecordDict:
    """A client's stats by bank name."""
    return pack_reply(sender, holdings=json.dumps({n: asdict(s) for n, s in holdings.items()}))


def unpack_holdings(content: RecordDict) -> dict[str, ClientStats]:
    """The inverse of `pack_holdings`.

    Raises:
        BankRefused: the answer cannot be read.
    """
    try:
        fields = HOLDINGS.validate_json(str(content[ABOUT]["holdings"]))
        return {name: ClientStats(**stats) for name, stats in fields.items()}
    except Exception as error:
        raise unreadable(error) from error


def pack_curves(sender: Sender, reply: SurveyReply) -> RecordDict:
    """A client's radius curves; radii in six digits, as they only guide the allocation."""
    curves = {
        name: {
            **asdict(curve.stats),
            "counts": curve.counts.tolist(),
            "radii": [float(f"{radius:.6g}") for radius in curve.radii],
        }
        for name, curve in reply.curves.items()
    }
    return pack_reply(sender, curves=json.dumps(curves), stale=reply.stale)


def unpack_curves(content: RecordDict) -> SurveyReply:
    """The inverse of `pack_curves`.

    Raises:
        BankRefused: the answer cannot be read.
    """
    try:
        about = content[ABOUT]
        curves = {}
        for name, fields in CURVES.validate_json(str(about["curves"])).items():
            counts, radii = np.array(fields["counts"], np.int64), np.array(fields["radii"], float)
            if max(len(counts), len(radii)) > CURVE_POINTS + 2:
                raise ValueError(f"a radius curve of {len(counts)} points")
            stats = ClientStats(fields["images"], fields["patches"], fields["share"])
            curves[name] = RadiusCurve(stats, counts, radii)
        return SurveyReply(curves, bool(about["stale"]))
    except Exception as error:
        raise unreadable(error) from error
