"""The time budget that a larger verification takes, estimated from what this one's runs took."""

from __future__ import annotations

import math

from mpdiag.diagnosis import Diagnosis, Verification

# as in settings.py, which paper does not import; a test holds them equal
DEFAULT_SECONDS = 80.0
TRAINING_SHARE, PREDICTION_SHARE, ISLANDS_SHARE = 0.4, 0.25, 0.25
REHEARSED = 2  # runs before the training ones, FP32 and FP16, of which the first is evaluated too
REHEARSAL_STEPS = 4  # ... of so many steps each
NOT_RUN = ": not run, "  # in what is cut, of an arm that the budget had no time for


def budget_for(diagnosis: Diagnosis, seeds: int) -> int | None:
    """Seconds for `--time-budget` with so many seeds and all the steps asked for, on the machine that ran these.

    Building a model and evaluating it are counted once a run, the rest once a step.
    Rather too many: the parts that come before the training are taken to need all of their shares. None where nothing
    tells how long a step took.
    """
    run, spent = diagnosis.verification, diagnosis.elapsed_seconds
    trained = sum(t.steps for t in run.trials) if run is not None else 0
    runs = len(run.trials) if run is not None else 0
    seconds = spent.get("verify", 0.0) - (run.costs.seconds if run is not None else 0.0)
    if run is None or trained == 0 or seconds <= 0:
        return None
    steps = diagnosis.asked.verify_steps if diagnosis.asked else max(t.steps for t in run.trials)
    asked = seeds * _arms(run)
    needed = seconds / (trained + REHEARSED * REHEARSAL_STEPS) * (steps * asked + REHEARSED * REHEARSAL_STEPS)
    needed += spent.get("build", 0.0) / (runs + REHEARSED) * (asked + REHEARSED)
    needed += spent.get("evaluate", 0.0) / (runs + 1) * (asked + 1)
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
