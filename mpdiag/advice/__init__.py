"""Capture -> Advice: the loss scale, the findings, what stays in FP32. Integer arithmetic on small tables, no torch."""

from mpdiag.advice.from_capture import advise, window_at
from mpdiag.advice.from_runs import advise_on_run, advise_on_trials, before_runs, with_findings, with_late_findings

__all__ = [
    "advise",
    "advise_on_run",
    "advise_on_trials",
    "before_runs",
    "window_at",
    "with_findings",
    "with_late_findings",
]
