"""What can be said once mixed precision has run: findings that go to the advice after the verification."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mpdiag.advice.checks import RUN_CHECKS, TRIAL_CHECKS
from mpdiag.advice.checks.fp16_runs import MENDED
from mpdiag.advice.checks.gradients import CURED, GradientUnderflow
from mpdiag.advice.format_choice import with_format_choice
from mpdiag.advice.from_capture import asked_to_keep, worst_first
from mpdiag.advice.places import with_source
from mpdiag.diagnosis import Advice, Diagnosis, Finding, Verification

_LATE = {check.code for check in (*TRIAL_CHECKS, *RUN_CHECKS)}
_RAISED = ("MP303", "MP304", "MP502")  # findings whose evidence may be that the capture's FP16 iteration raised
SEARCHED, SEARCHED_AGAIN = "islands", "islands again"  # the stages that make a plan: before and in a verification
OF_RUNS = (SEARCHED_AGAIN, "largest batch", "build", "evaluate")  # stages that the next verification may not have
_CONTRADICT = ("MP602", "MP604")  # the scale fell below 1, a gradient is dead: no scale cures this job's underflow


def advise_on_trials(verification: Verification, advice: Advice) -> tuple[Finding, ...]:
    """The findings of the runs themselves (MP6xx), worst first."""
    return worst_first(finding for check in TRIAL_CHECKS for finding in check.find(verification, advice))


def advise_on_run(diagnosis: Diagnosis) -> tuple[Finding, ...]:
    """The findings that take the machine, the capture and the measured costs together (MP4xx and others)."""
    return worst_first(finding for check in RUN_CHECKS for finding in check.find(diagnosis))


def with_findings(advice: Advice, found: Iterable[Finding]) -> Advice:
    """The advice with these findings, worst first, in place of those that these rules gave before."""
    late = tuple(found)
    contradicted = any(f.code in _CONTRADICT and MENDED not in f.evidence for f in late)  # with the plan another serves
    kept = [_after_runs(finding, contradicted) for finding in advice.findings if finding.code not in _LATE]
    return replace(advice, findings=worst_first((*kept, *late)))


def before_runs(diagnosis: Diagnosis, raises: bool = True) -> Diagnosis:
    """The diagnosis without what an earlier verification added to it, for the next one to judge afresh.

    That is findings, and an island plan that was searched for only because a run lost a gradient. raises: whether FP16
    still raises in its first iteration; where it does not, the findings that say so go too.
    """
    advice, seconds = diagnosis.advice, diagnosis.elapsed_seconds
    if advice is None:
        return diagnosis
    raised = diagnosis.capture.amp_error if diagnosis.capture else None
    old = [f for f in advice.findings if f.code in _RAISED and f.evidence.get("error") == raised] if raised else []
    kept = [f for f in advice.findings if f.code not in _LATE and (raises or f not in old)]
    if SEARCHED_AGAIN in seconds and SEARCHED not in seconds:
        advice = replace(advice, plan=None, keep_fp32=asked_to_keep(kept))
    advice = replace(advice, findings=tuple(_after_runs(finding, False) for finding in kept))
    stages = {stage: spent for stage, spent in seconds.items() if stage not in OF_RUNS}
    return replace(diagnosis, advice=advice, elapsed_seconds=stages)


def _after_runs(finding: Finding, contradicted: bool) -> Finding:
    """The finding as the runs leave it: that the recommended scale cures underflow holds until they say otherwise."""
    if finding.code != GradientUnderflow.code or CURED not in finding.evidence:
        return finding
    return replace(finding, severity="info" if finding.evidence[CURED] and not contradicted else "warning")


def with_late_findings(diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis with what its runs and its machine add to the advice; again gives the same."""
    if diagnosis.advice is None:
        return diagnosis
    run = diagnosis.verification
    of_trials = advise_on_trials(run, diagnosis.advice) if run is not None else ()
    late = [with_source(finding, diagnosis.capture) for finding in (*of_trials, *advise_on_run(diagnosis))]
    found = with_findings(diagnosis.advice, late)
    return with_format_choice(replace(diagnosis, advice=found))  # an error of the runs speaks against FP16 too
