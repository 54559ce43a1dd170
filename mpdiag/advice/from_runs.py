"""What can be said once mixed precision has run: findings that go to the advice after the verification."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mpdiag.advice.checks import RUN_CHECKS, TRIAL_CHECKS
from mpdiag.advice.from_capture import worst_first
from mpdiag.diagnosis import Advice, Diagnosis, Finding, Verification

_LATE = {check.code for check in (*TRIAL_CHECKS, *RUN_CHECKS)}


def advise_on_trials(verification: Verification, advice: Advice) -> tuple[Finding, ...]:
    """The findings of the runs themselves (MP6xx), worst first."""
    return worst_first(finding for check in TRIAL_CHECKS for finding in check.find(verification, advice))


def advise_on_run(diagnosis: Diagnosis) -> tuple[Finding, ...]:
    """The findings that take the machine, the capture and the measured costs together (MP4xx and others)."""
    return worst_first(finding for check in RUN_CHECKS for finding in check.find(diagnosis))


def with_findings(advice: Advice, found: Iterable[Finding]) -> Advice:
    """The advice with these findings, worst first, in place of those that these rules gave before."""
    kept = [finding for finding in advice.findings if finding.code not in _LATE]
    return replace(advice, findings=worst_first((*kept, *found)))


def with_late_findings(diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis with what its runs and its machine add to the advice; again gives the same."""
    if diagnosis.advice is None:
        return diagnosis
    run = diagnosis.verification
    of_trials = advise_on_trials(run, diagnosis.advice) if run is not None else ()
    return replace(diagnosis, advice=with_findings(diagnosis.advice, (*of_trials, *advise_on_run(diagnosis))))
