"""The time budget that a larger verification takes, estimated from what this one's runs took."""

from __future__ import annotations

import math

from mpdiag.diagnosis import Diagnosis, Verification

# as in settings.py, which paper does not import; a test holds them equal
DEFAULT_SECONDS = 60.0
TRAINING_SHARE, PREDICTION_SHARE, ISLANDS_SHARE = 0.4, 0.25, 0.25
NOT_RUN = ": not run, "  # in what is cut, of an arm that the budget had no time for


def budget_for(diagnosis: Diagnosis, seeds: int) -> int | None:
    """Seconds for `--time-budget` with so many seeds and all the steps asked for, on the machine that ran these.

    Rather too many: the parts that come before the training are taken to need all of their shares. None where nothing
    tells how long a step took.
    """
    run, spent = diagnosis.verification, diagnosis.elapsed_seconds
    trained = sum(t.steps for t in run.trials) if run is not None else 0
    seconds = spent.get("verify", 0.0) - (run.costs.seconds if run is not None else 0.0)
    if run is None or trained == 0 or seconds <= 0:
        return None
    steps = diagnosis.asked.verify_steps if diagnosis.asked else max(t.steps for t in run.trials)
    needed = seconds / trained * steps * seeds * _arms(run)
    if run.costs.seconds > 0:
        needed /= TRAINING_SHARE
    needed /= 1 - PREDICTION_SHARE - (ISLANDS_SHARE if spent.get("islands", 0.0) > 0 else 0.0)
    return _rounded_up(needed)


def _arms(run: Verification) -> int:
    return len({t.arm for t in run.trials}) + sum(line.startswith("arm ") and NOT_RUN in line for line in run.cut)


def _rounded_up(seconds: float) -> int:
    """To two figures, tens of seconds at least."""
    step = int(10.0 ** max(1, math.floor(math.log10(max(seconds, 1.0))) - 1))
    return math.ceil(seconds / step) * step
