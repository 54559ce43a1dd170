"""The stages of a scan in order; one road for the command line and for Python."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpdiag.diagnosis import NOT_ASKED_FOR, Asked, Diagnosis
from mpdiag.draft import Draft
from mpdiag.errors import UsageError
from mpdiag.options import ScanOptions as ScanOptions
from mpdiag.options import in_python, with_keywords
from mpdiag.saved import from_json
from mpdiag.settings import ISLANDS_SHARE, PREDICTION_SHARE, PREDICTION_STEPS, SELFTEST_STEPS

if TYPE_CHECKING:
    import pandas
    import torch

    from mpdiag.capture.run import Observation
    from mpdiag.target import Job, Start


def scan(
    target: str,
    options: ScanOptions | None = None,
    *,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
    checkpoint: Callable[[Diagnosis], None] = lambda diagnosis: None,
    **changed: Any,
) -> Diagnosis:
    """Capture, advise and verify a training job: `scan("model.py", steps=50, verify=False)`.

    Keywords are those of ScanOptions. report gets one line as each stage begins. checkpoint gets the diagnosis so far
    after each stage, so that even a killed process leaves what it had. Raises MpdiagError, whose `diagnosis` holds what
    was seen until then.
    """
    from mpdiag.device.environment import describe
    from mpdiag.device.random_state import gradients_on, random_state_kept
    from mpdiag.device.select import select_device
    from mpdiag.target import load_job
    from mpdiag.target.record import target_record

    options = with_keywords(options or ScanOptions(), changed)
    device = select_device(options.device)
    draft = Draft(
        Diagnosis(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command or in_python("scan", target, options),
            environment=describe(device),
            target=None,
            asked=Asked(options.verify_steps, options.seeds),
        ),
        checkpoint,
    )
    with random_state_kept(), gradients_on(), draft.kept_on_failure():
        report(f"load {target}")
        with draft.timed("load"):
            job = load_job(target, options.start_from)
            start = job.start(options.seed, options.last_step + 1)
            draft.update(target=target_record(job, start))
        _capture(draft, job, start, options, device, report)
        if options.depth == "ops":
            _operations(draft, job, start, options, device, report)
        _advise(draft)
        _islands(draft, job, start, options, device, report)
        if options.verify:
            seconds = draft.diagnosis.elapsed_seconds
            pace = seconds.get("capture", 0.0) / sum(map(len, options.parts))  # counting included: rather too slow
            verification_stage(draft, job, options, device, report, seconds.get("islands", 0.0), pace)
        else:
            draft.update(reason=NOT_ASKED_FOR)
        late_findings(draft)
    return draft.diagnosis


def load(path: str | Path) -> Diagnosis:
    """Read a saved diagnosis. Raises UsageError (`no-such-file`, `not-a-diagnosis`, `schema-version`)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("no-such-file", f"{path}: {error}", "give a JSON written by `mpdiag scan`") from None
    try:
        return from_json(text)
    except UsageError as error:
        raise UsageError(error.slug, f"{path}: {error.message}", error.hint) from None


def save(diagnosis: Diagnosis, path: str | Path) -> None:
    """Write a diagnosis: the page where path ends in .html, else the JSON that `load` and the commands read."""
    path = Path(path)
    if path.suffix == ".html":
        from mpdiag.advice.configs import configs_for
        from mpdiag.report.html import render

        text = render(diagnosis, configs=configs_for(diagnosis))
    else:
        from mpdiag.saved import to_json

        text = to_json(diagnosis)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path of the job's may be no valid text


def text(diagnosis: Diagnosis | str | Path) -> str:
    """What `mpdiag scan` prints: verdict, why, findings, next steps. Also of a saved diagnosis, by its path."""
    from mpdiag.report.terminal import render

    return render(diagnosis if isinstance(diagnosis, Diagnosis) else load(diagnosis))


def frame(diagnosis: Diagnosis | str | Path) -> pandas.DataFrame:
    """Every tensor's counts as a pandas DataFrame, one row a tensor, the columns of the CSV; from a path too."""
    import pandas  # a quarter of a second, and only who asks for a frame needs it

    from mpdiag.report.table import COLUMNS, rows

    diagnosis = diagnosis if isinstance(diagnosis, Diagnosis) else load(diagnosis)
    return pandas.DataFrame(list(rows(diagnosis)), columns=list(COLUMNS))


def _capture(
    draft: Draft, job: Job, start: Start, options: ScanOptions, device: torch.device, report: Callable[[str], None]
) -> None:
    from mpdiag.capture.autocast_types import observe
    from mpdiag.capture.run import Observation, observe_training
    from mpdiag.capture.selftest import run_selftest
    from mpdiag.target.record import with_later_notes

    with draft.timed("selftest"):
        report("self-test: is the training bit-identical with the probe?")
        observation = Observation(device, options.seed, run_selftest(job, start, device, SELFTEST_STEPS))
    draft.finish = lambda: _hand_over_capture(draft, observation)
    with draft.timed("autocast types"):
        report("one FP16 iteration, to see which type each tensor takes")
        observation.types = observe(job, start, device)
    with draft.timed("capture"):
        report(f"capture {_steps_in_words(options)} on {device.type}")
        observe_training(job, start, observation, options.parts, options.include, options.exclude)
    draft.finish = lambda: None
    if not observation.tables:
        raise UsageError("nothing-observed", "no tensor was observed", "check --include and --exclude")
    if observation.own_autocast:
        job.note("the target opens autocast regions of its own: FP32 runs kept them in FP32")
    if options.include or options.exclude:
        job.note("loss scale and window cover only the tensors that --include and --exclude let through")
    job.note_repeats(start, options.last_step + 1)
    draft.parts = observation.records_of_parts()
    draft.update(capture=observation.record(), target=with_later_notes(draft.diagnosis.target, job))


def _hand_over_capture(draft: Draft, observation: Observation) -> None:
    draft.parts = observation.records_of_parts()
    observation.reason = "the capture ended early"
    draft.diagnosis = replace(draft.diagnosis, capture=observation.record())
    if observation.tables:
        _advise(draft)


def _operations(
    draft: Draft, job: Job, start: Start, options: ScanOptions, device: torch.device, report: Callable[[str], None]
) -> None:
    from mpdiag.capture.op_scan import observe_operations

    draft.finish = lambda: _advise(draft)
    with draft.timed("operations"):
        report("two iterations, FP16 and FP32, to see every operation between the modules")
        found = observe_operations(job, start, device, options.include, options.exclude)
    draft.finish = lambda: None
    assert draft.diagnosis.capture is not None
    draft.update(capture=replace(draft.diagnosis.capture, operations=found.tables, operations_reason=found.reason))


def _advise(draft: Draft) -> None:
    from mpdiag.advice import advise

    assert draft.diagnosis.capture is not None
    draft.update(advice=advise(draft.diagnosis.capture, draft.parts))


def _islands(
    draft: Draft, job: Job, start: Start, options: ScanOptions, device: torch.device, report: Callable[[str], None]
) -> None:
    from mpdiag.verify.island_search import islands_wanted, with_islands

    capture, advice = draft.diagnosis.capture, draft.diagnosis.advice
    assert capture is not None
    assert advice is not None
    if not islands_wanted(capture, advice):
        return
    with draft.timed("islands"):
        report("search modules to keep in FP32")
        budget = ISLANDS_SHARE * options.time_budget_seconds
        advice = with_islands(job, start, device, capture, advice, budget, report, draft.parts)
    draft.update(advice=advice)


def late_findings(draft: Draft) -> None:
    """Add what only the whole run can tell: of its trials, its costs, its environment."""
    from mpdiag.advice import with_late_findings

    draft.diagnosis = with_late_findings(draft.diagnosis)


def _steps_in_words(options: ScanOptions) -> str:
    """Which steps are observed."""
    parts = options.parts
    if len(parts) == 1:
        return f"{len(parts[0])} FP32 steps"
    return f"{sum(map(len, parts))} of {options.last_step + 1} FP32 steps, at {', '.join(str(p[0]) for p in parts)}"


def verification_stage(
    draft: Draft, job: Job, options: ScanOptions, device: torch.device, report: Callable[[str], None],
    islands_seconds: float = 0.0, pace_seconds: float = 0.0,
) -> None:  # fmt: skip
    """Verify within what is left of the time budget once the search of islands has taken its part.

    pace_seconds: a counted FP32 step's, 0 where it is not known on this machine.
    """
    from mpdiag.advice.checks.trials import start_log2
    from mpdiag.target.record import with_later_notes
    from mpdiag.verify.costs_asked import CostsAsked
    from mpdiag.verify.island_gradients import dead_gradients, with_live_gradients
    from mpdiag.verify.island_search import costed
    from mpdiag.verify.run import VerificationRun
    from mpdiag.verify.run_seconds import RunSeconds

    capture, advice = draft.diagnosis.capture, draft.diagnosis.advice
    assert capture is not None
    assert advice is not None

    def so_far() -> Diagnosis:
        return replace(draft.diagnosis, verification=running.record(interrupted=True))

    def stopped() -> None:
        if running.trials:
            draft.apart("verify", seconds.parts)
            draft.diagnosis = so_far()
            late_findings(draft)
        else:
            draft.restore()

    def progress() -> None:
        seconds.look(len(running.trials))
        draft.keep(so_far)

    running = VerificationRun(job, advice, device, job.better, progress, selftest=capture.selftest)
    draft.finish = stopped
    budget = max(options.time_budget_seconds - islands_seconds, 0.0)
    began = time.perf_counter()
    with draft.timed("prediction"):
        report("count FP16 beside FP32: does it do what the FP32 counts foretell?")
        steps = min(options.last_step + 1, PREDICTION_STEPS)
        running.predict(capture, options.seed, steps, PREDICTION_SHARE * budget, pace_seconds)
    if dead_gradients(running.prediction, start_log2(advice) or 0):
        with draft.timed("islands again"):
            report("search modules to keep in FP32 once more: a gradient is zero in FP16")
            first, most = job.start(options.seed, 1), ISLANDS_SHARE * budget
            advice = with_live_gradients(
                job, first, device, capture, advice, running.prediction, most, report, draft.parts
            )
        running.advice = advice
        draft.update(advice=advice)
    seconds = RunSeconds(job)
    with draft.timed("verify"):
        predicted = time.perf_counter() - began
        spent = {"the search of FP32 islands took": islands_seconds, "the prediction took": predicted}
        asked = CostsAsked(
            options.costs, options.batch_searched, options.memory_limit_bytes, options.time_budget_seconds,
            options.control_costs,
        )  # fmt: skip
        left = max(budget - predicted, 0.0)
        running.run(options.seed, options.verify_steps, options.seeds, left, report, asked, spent)
    verification = running.record()
    draft.apart("verify", {**seconds.parts, "largest batch": verification.costs.largest_batch_seconds})
    if advice.plan is not None:
        advice = replace(advice, plan=costed(advice.plan, verification.costs))
    draft.update(verification=verification, advice=advice, target=with_later_notes(draft.diagnosis.target, job))
    draft.finish = lambda: None  # not before: until then what stops it would leave no verification
