"""Did the controls fail? Only where one did have the runs shown that the test can notice harm on this job."""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.accuracy import ControlOutcome
from mpdiag.arm_names import FP16_PURE, FP16_UNSCALED
from mpdiag.diagnosis import Comparison
from mpdiag.verify.compare import CRASHED, NOT_GIVEN

CONTROLS = (FP16_UNSCALED, FP16_PURE)


def control_outcomes(comparisons: Sequence[Comparison]) -> tuple[ControlOutcome, ...]:
    """One outcome for each control that was run: what leaves out the loss scale, or the FP32 master weights too."""
    found = []
    for arm in CONTROLS:
        about = [c for c in comparisons if c.candidate == arm and not c.is_ratio]
        if about:
            found.append(_outcome(arm, about))
    return tuple(found)


def _outcome(arm: str, about: Sequence[Comparison]) -> ControlOutcome:
    worst = [c for c in about if c.verdict == "worse"]
    worse = next((c for c in worst if not _crashed(c)), next(iter(worst), None))
    if worse is not None and _crashed(worse):
        # an operator without FP16 says nothing about accuracy
        return ControlOutcome(arm, None, worse.reason or CRASHED)
    if worse is not None and worse.difference is None:  # not finite: breakage is noticed, a small loss need not be
        return ControlOutcome(arm, None, _told(worse), broke=True)
    if worse is not None:
        return ControlOutcome(arm, True, _told(worse))
    undecided = next((c for c in about if c.decides and _undecided(c)), None)
    if undecided is not None:
        return ControlOutcome(arm, None, _told(undecided))
    return ControlOutcome(arm, False, ", ".join(f"{_name(c)} {_verdict(c)}" for c in about if c.decides))


def _undecided(comparison: Comparison) -> bool:
    shown = comparison.test is not None and comparison.test.noninferior
    return comparison.verdict in ("inconclusive", NOT_GIVEN) and not shown


def _crashed(comparison: Comparison) -> bool:
    return (comparison.reason or "").startswith(CRASHED)


def _verdict(comparison: Comparison) -> str:
    return "not worse" if comparison.verdict == "inconclusive" else comparison.verdict


def _name(comparison: Comparison) -> str:
    return comparison.quantity.replace("_", " ")


def _told(comparison: Comparison) -> str:
    if comparison.difference is None:
        return f"{_name(comparison)}: {comparison.reason}"
    text = f"{_name(comparison)} {comparison.difference:+.2g}"
    if comparison.margin is not None:
        text += f", margin {comparison.margin:.2g}"
    return f"{text}, {comparison.reason}" if comparison.reason else text
