"""From a Capture to everything that can be said without running mixed precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpdiag.advice.block_formats import what_if_in_blocks
from mpdiag.advice.checks import CAPTURE_CHECKS
from mpdiag.advice.loss_scale import Part, recommend
from mpdiag.advice.other_formats import what_if
from mpdiag.advice.places import with_source
from mpdiag.diagnosis import Advice, Capture, Finding
from mpdiag.drift import WindowAt
from mpdiag.formats import FP16

_ORDER = {"error": 0, "warning": 1, "info": 2}
_KEEPS_FP32 = ("MP101", "MP102", "MP301")


def advise(capture: Capture, parts: Sequence[Part] = ()) -> Advice:
    """The loss scale, all findings (worst first), the modules to keep in FP32, and how the window drifts.

    parts: (steps, capture) of each stretch of the training that was observed, where there were several.
    """
    loss_scale = recommend(capture, parts)
    found = (finding for check in CAPTURE_CHECKS for finding in check.find(capture, loss_scale))
    findings = worst_first(with_source(finding, capture) for finding in found)
    names = asked_to_keep(findings)
    forecasts = (*what_if(capture, parts), *what_if_in_blocks(capture, parts))
    drift = tuple(window_at(steps, seen) for steps, seen in parts) if len(parts) > 1 else ()
    return Advice(FP16.name, loss_scale, findings, names, drift=drift, other_formats=forecasts)


def asked_to_keep(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The modules that these findings ask to keep in FP32; whether they are enough is for a search to try."""
    keep = [f.subject for f in findings if f.code in _KEEPS_FP32 and f.severity != "info"]
    owners = [f.subject.rpartition(".")[0] for f in findings if f.code == "MP104"]  # of an overflowing weight
    keep += [owner for owner in owners if owner]
    return tuple(dict.fromkeys(keep))


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by code and subject."""
    return tuple(sorted(findings, key=lambda f: (_ORDER[f.severity], f.code, f.subject)))


def window_at(steps: Sequence[int], capture: Capture) -> WindowAt:
    """The loss-scale window of what was captured in these steps of the training alone."""
    scale = recommend(capture)
    return WindowAt(
        first_step=steps[0],
        last_step=steps[-1],
        steps=len(steps),
        lower_log2=scale.lower_log2,
        upper_log2=scale.upper_log2,
        log2_scale=scale.log2_scale,
        underflow=scale.underflow_before,
        energy_lost=scale.energy_lost_before,
    )
