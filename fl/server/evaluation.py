"""What follows from the clients' results: thresholds and the measured covering radius."""

import numpy as np

from fl.server.state import ServerState
from src.federated.bank_set import BankSet
from src.federated.calibration import pooled_threshold
from src.federated.types import Calibration
from src.privacy.mechanisms.threshold import threshold_of


def thresholds(state: ServerState, false_alarm_rate: float) -> BankSet[float]:
    """Bank name -> image score above which this share of normal images lies.

    A private bank brings the distribution of the scores; otherwise the clients' calibrations are
    pooled. A bank for which neither exists has no threshold.
    """
    limits = {}
    for name, bank in state.banks.items():
        calibrated = calibrations(state, name)
        if bank.log_scores:
            limits[name] = threshold_of(bank.log_scores, false_alarm_rate)
        elif any(each.images for each in calibrated.values()):
            limits[name] = pooled_threshold(calibrated, false_alarm_rate)
    return BankSet(limits)


def measured_radius(state: ServerState, name: str) -> float | None:
    """Largest distance to a bank of any training patch of the clients that reported it."""
    return max((each.radius for each in calibrations(state, name).values()), default=None)


def calibrations(state: ServerState, name: str) -> dict[int, Calibration]:
    """Client -> how its normal images score with a bank."""
    return {
        client: Calibration(np.array(fields["quantiles"]), fields["images"], fields["radius"])
        for client, results in state.results.items()
        if (fields := results["calibration"].get(name))
    }
