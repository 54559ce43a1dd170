"""Finishing on one machine what a scan began on another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpdiag.advice import before_runs
from mpdiag.api import late_findings, load, verification_stage
from mpdiag.arm_names import BASELINE
from mpdiag.diagnosis import Asked, Diagnosis, TargetRecord
from mpdiag.draft import Draft
from mpdiag.errors import UsageError
from mpdiag.options import ScanOptions, in_python, with_keywords

FIRST_LOSS_APART = 0.01  # relative: another device's rounding is far below; dropout draws other numbers there


def verify_saved(
    saved: Diagnosis | str | Path,
    options: ScanOptions | None = None,
    *,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
    checkpoint: Callable[[Diagnosis], None] = lambda diagnosis: None,
    **changed: Any,
) -> Diagnosis:
    """Verify on this machine what a scan elsewhere captured: `verify_saved("run.json", device="cuda")`.

    The job is loaded from where the scan found it; its first seed, loss scale and FP32 islands are those of the scan,
    and so are the numbers of seeds and steps unless options or keywords give others.
    Raises UsageError (`nothing-to-verify`, `target-changed`) and whatever loading and training the job raises.
    """
    from mpdiag.capture.autocast_types import observe
    from mpdiag.device.environment import describe
    from mpdiag.device.random_state import gradients_on, random_state_kept
    from mpdiag.device.select import select_device
    from mpdiag.target import load_job
    from mpdiag.target.record import target_record, typed_target, what_changed

    diagnosis = saved if isinstance(saved, Diagnosis) else load(saved)
    if diagnosis.target is None or diagnosis.capture is None or diagnosis.advice is None:
        missing = "it ended before anything was captured"
        raise UsageError("nothing-to-verify", f"the saved scan has no capture: {missing}", "scan the target again")
    target, capture = diagnosis.target, diagnosis.capture
    seen = capture.steps if capture.last_step is None else capture.last_step + 1  # None: saved before it was noted
    observed = max((part.last_step + 1 for part in diagnosis.advice.drift), default=seen)
    asked = diagnosis.asked
    if options is None:
        options = ScanOptions() if asked is None else ScanOptions(verify_steps=asked.verify_steps, seeds=asked.seeds)
    options = with_keywords(options, changed)
    typed = in_python("verify_saved", "DIAGNOSIS" if isinstance(saved, Diagnosis) else str(saved), options)
    fixed = {"seed": capture.seed, "steps": observed, "start_from": target.start_from}
    options = with_keywords(options, {name: value for name, value in fixed.items() if name not in changed})
    device = select_device(options.device)
    here, now = describe(device), datetime.now(UTC).isoformat(timespec="seconds")
    with random_state_kept(), gradients_on():
        # what fails here leaves the saved run as it is: nothing of it has been touched
        report(f"load {typed_target(target)}")
        job = load_job(typed_target(target), target.start_from)
        start = job.start(capture.seed, options.verify_steps)
        changes = what_changed(target, target_record(job, start))
        raises = capture.amp_error is not None and observe(job, start, device).error is not None
        draft = Draft(
            replace(
                before_runs(diagnosis, raises),
                command=command or typed,
                environment=here,
                captured_on=diagnosis.captured_on or (diagnosis.environment if diagnosis.environment != here else None),
                target=replace(target, notes=changes),
                verification=None,
                reason=None,
                hint=None,
                asked=Asked(options.verify_steps, options.seeds),
                verified=now,
            ),
            checkpoint,
            before=diagnosis,
        )
        with draft.kept_on_failure():
            verification_stage(draft, job, options, device, report)
            draft.update(target=_with_first_losses(draft.diagnosis))
            late_findings(draft)
    return draft.diagnosis


def _with_first_losses(diagnosis: Diagnosis) -> TargetRecord | None:
    """The target, with a note where FP32's first loss is not the one of the capture: something else was trained."""
    from mpdiag.target.record import SINCE

    target, capture, run = diagnosis.target, diagnosis.capture, diagnosis.verification
    if target is None or capture is None or run is None or diagnosis.advice is None:
        return target
    if capture.first_step or any(part.first_step for part in diagnosis.advice.drift[:1]):
        return target  # the capture holds no loss of the first step
    mine = next((t for t in run.trials if t.arm == BASELINE and t.seed == capture.seed and t.losses), None)
    if mine is None or not capture.losses:
        return target
    then, now = capture.losses[0], mine.losses[0]
    if abs(now - then) <= FIRST_LOSS_APART * abs(then):
        return target
    note = f"{SINCE}FP32's first loss was {then:.4g}, now it is {now:.4g}: other data, weights, code, or other dropout"
    return replace(target, notes=(*target.notes, note))
