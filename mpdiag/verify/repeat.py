"""Does FP32 repeat itself after all other arms? A file that keeps state between runs gives each arm another job."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpdiag.diagnosis import Comparison, SelfTest, Trial
from mpdiag.verify.compare import endpoint

KEEPS_STATE = (
    "the file keeps state between runs, so its arms cannot be compared; count steps in the model or the optimizer, and "
    "change no batch in place"
)
ANOTHER_ORDER = (
    "the GPU adds up in another order each time, and this stage of training amplifies that beyond what is to be told; "
    "scan from a trained state (--start-from)"
)


def why_it_strays(selftest: SelfTest | None) -> str:
    """The cause: under deterministic algorithms a job that keeps no state repeats itself, and a probe can be tested."""
    return ANOTHER_ORDER if selftest is not None and selftest.unchanged is not None else KEEPS_STATE


def strays(first: Trial, again: Trial, comparisons: Sequence[Comparison]) -> str | None:
    """How far FP32's second run of a seed ends from its first, where that is beyond a margin; None where it is not.

    The arms take turns in one process, always in the same order: a counter in the file (a warm-up of its own, say) is
    further on for each. What two runs of one arm differ by, two arms may differ by for no fault of a precision. Where
    FP32 adds up in another order each time, as atomic additions on a GPU do, it strays too, by far less than a margin.
    """
    if again.error and not first.error:
        return f"FP32 trained again after the other arms fails at step {again.steps + 1}: {again.error}"
    for quantity, one, other in _pairs(first, again):
        margin = next((c.margin for c in comparisons if c.quantity == quantity and c.margin is not None), None)
        apart = abs(other - one)
        if margin is not None and (apart > margin or math.isnan(apart)):
            name = quantity.replace("_", " ")
            return (
                f"FP32 trained again after the other arms ends {apart:.3g} from its first run in {name} (margin "
                f"{margin:.3g})"
            )
    return None


def _pairs(first: Trial, again: Trial) -> list[tuple[str, float, float]]:
    """(quantity, value, value again) of what both runs have, the loss first."""
    metrics, later = first.metric or {}, again.metric or {}
    told = [(name, metrics[name], later[name]) for name in metrics if name in later]
    return [("loss", endpoint(first), endpoint(again)), *told]
