"""The answer in four parts, as plain lines: VERDICT, WHY, NEXT, NOT DONE. Terminal and Markdown print the same."""

from __future__ import annotations

from dataclasses import dataclass

from mpdiag.diagnosis import (
    NOT_ASKED_FOR,
    Capture,
    Comparison,
    Diagnosis,
    Environment,
    Finding,
    Trial,
    Verification,
)
from mpdiag.foretold import Prediction
from mpdiag.operations import NOT_OBSERVED, OpRole
from mpdiag.report.accuracy_words import CRASHED, control_sentences, verdict_in_words
from mpdiag.report.cost_words import cost_lines
from mpdiag.report.gradient_words import gradient_line
from mpdiag.report.islands import island_sentences
from mpdiag.report.next_steps import instead_of_fp16, steps_from
from mpdiag.report.scale_words import drift_lines, plan_scale_lines, scale_lines

STOPPED_BEFORE = "the scan was stopped before the verification"  # killed: whatever else ends a scan leaves its reason
MAX_FINDINGS = 8  # a screen; the page has all
OF_FP8 = "MP7"  # what FP8 would do, for who asks on the page: the terminal answers for FP16


@dataclass(frozen=True)
class Digest:
    """Lines for people, without markup. why: (topic, text). findings: (severity, code, text)."""

    heading: tuple[str, ...]
    verdict: str
    verdict_reason: str
    why: tuple[tuple[str, str], ...]
    findings: tuple[tuple[str, str, str], ...]
    more_findings: str | None
    next_steps: tuple[str, ...]
    snippet: str | None
    not_done: tuple[str, ...]


def digest_of(diagnosis: Diagnosis, every_finding: bool = False) -> Digest:
    """The digest of a diagnosis, whole or partial. every_finding: for paper that has no page beside it."""
    verdict, reason = verdict_of(diagnosis)
    advice = diagnosis.advice
    findings = advice.findings if advice else ()
    asked = [f for f in findings if f.severity != "info" or not f.code.startswith(OF_FP8)]
    kept = asked[:MAX_FINDINGS]
    if every_finding or len(findings) - len(kept) == 1:  # a line that says "1 more" has room for the one
        kept = list(findings)
    shown, hidden = tuple((f.severity, f.code, _told(f)) for f in kept), len(findings) - len(kept)
    return Digest(
        heading=tuple(_heading(diagnosis)),
        verdict=verdict,
        verdict_reason=reason,
        why=tuple(_raised_once(_why(diagnosis), reason, diagnosis.verification)),
        findings=shown,
        more_findings=f"{_count(hidden, 'more finding')}: see the page" if hidden else None,
        next_steps=tuple(steps_from(diagnosis)),
        snippet=diagnosis.snippet,
        not_done=tuple(_not_done(diagnosis)),
    )


def _told(finding: Finding) -> str:
    """The message, and in one word what it rests on."""
    return f"{finding.message} [{finding.certainty}]" if finding.certainty else finding.message


def verdict_of(diagnosis: Diagnosis) -> tuple[str, str]:
    """(verdict, reason) also where there was no verification."""
    if diagnosis.verification is not None:
        return diagnosis.verification.verdict or "none", diagnosis.verification.reason
    if diagnosis.reason is not None and diagnosis.reason != NOT_ASKED_FOR:
        return "none", f"the scan did not end: {diagnosis.reason}"
    if diagnosis.reason is None:
        return "none", f"not verified: {STOPPED_BEFORE}"
    errors = sum(f.severity == "error" for f in diagnosis.advice.findings) if diagnosis.advice else 0
    if errors:
        return "none", f"not verified; {_count(errors, 'finding')} to be mended first"
    return "none", "not verified: mixed precision was not run"


DATA = "data: "  # a note on where the target's data come from, not on what was left undone


def _heading(diagnosis: Diagnosis) -> list[str]:
    lines = []
    target, environment = diagnosis.target, diagnosis.environment
    if target is not None:
        lines.append(f"{target.source} · {target.parameters:,} parameters · {target.optimizer}")
        lines += [note for note in target.notes if note.startswith(DATA)]
    lines.append(_machine(environment))
    if diagnosis.capture is not None:
        elsewhere = f", on another machine: {_machine(diagnosis.captured_on)}" if diagnosis.captured_on else ""
        lines.append(_observed(diagnosis.capture) + elsewhere)
    return lines


def _machine(environment: Environment) -> str:
    where = environment.gpu or f"CPU ({environment.cpu_threads} threads)"
    return f"{where} · torch {environment.torch} · mpdiag {environment.mpdiag}"


def _observed(capture: Capture) -> str:
    test = capture.selftest
    unchanged = {
        True: "the probe left the training bit-identical" + (f" ({test.reason})" if test.reason else ""),
        False: f"THE PROBE CHANGED THE TRAINING by {test.difference:.3g}" if test.difference is not None else "",
        None: f"bit-identity not tested: {test.reason}",
    }[test.unchanged]
    steps = _count(capture.steps, f"{capture.precision} step")
    # none: they were left out of this file, or the scan ended before; a note says which, and 0 would be no count
    tensors = [_count(len(capture.tables), "tensor")] if capture.tables else []
    return f"observed {' · '.join([steps, *tensors, unchanged])}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _why(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    lines = []
    if diagnosis.advice is not None:
        choice = diagnosis.advice.format_choice
        lines += [("format", f"{choice.chosen}: {choice.reason}")] if choice else []
        lines += scale_lines(diagnosis.advice.loss_scale)
        lines += drift_lines(diagnosis.advice.drift, diagnosis.advice.loss_scale.log2_scale)
        lines += plan_scale_lines(diagnosis.advice)
        topic = "alternative" if instead_of_fp16(diagnosis) else "islands"
        lines += [(topic, sentence) for sentence in island_sentences(diagnosis)]
    lines += _operation_lines(diagnosis.capture)
    if diagnosis.verification is not None:
        fp16 = [c for c in diagnosis.verification.comparisons if c.candidate == "fp16" and not c.is_ratio]
        lines += [comparison_line(c) for c in fp16]
        line = gradient_line(diagnosis.verification.gradients)
        lines += [("gradient", line)] if line else []
        lines += cost_lines(diagnosis.verification)
        lines += _skips(diagnosis)
        lines += _bf16(diagnosis.verification.comparisons)
        lines += [("controls", "; ".join(told))] if (told := control_sentences(diagnosis)) else []
        lines += _foretold(diagnosis.verification.prediction)
    return lines


def _raised_once(lines: list[tuple[str, str]], verdict: str, run: Verification | None) -> list[tuple[str, str]]:
    """What a run raised in full where it first stands, in the verdict or a line; after that a word on where."""
    raised = [t.error for t in run.trials if t.error] if run is not None else []
    said, told = verdict, []
    for topic, text in lines:
        again = next((error for error in raised if text.endswith(f"{CRASHED}: {error}") and error in said), None)
        said += text
        told.append((topic, text if again is None else f"{text.removesuffix(f': {again}')}, see above"))
    return told


def _operation_lines(capture: Capture | None) -> list[tuple[str, str]]:
    """One line on the second pass, where there was one."""
    seen = [t for t in (capture.operations if capture else None) or () if t.role is not OpRole.CONSTANT]
    half = [t for t in seen if t.in_half and t.abs_max and not t.masked]
    if not seen:
        return []
    largest = max(half, key=lambda t: t.abs_max or 0.0, default=None)
    text = f"{_count(len(seen), 'value')} of operators seen, {len(half)} of them in FP16"
    if largest is not None:
        text += f"; the largest is {largest.abs_max:.4g}, of {largest.op} in {largest.place}"
    return [("operations", text)]


def comparison_line(c: Comparison) -> tuple[str, str]:
    """One comparison of a loss or metric: both values, the difference with its interval and margin, the verdict."""
    topic = c.quantity.replace("_", " ")
    if c.baseline_value is None or c.candidate_value is None or c.difference is None:
        return topic, f"{verdict_in_words(c)}: {c.reason}"
    text = f"{c.baseline_value:.5g} -> {c.candidate_value:.5g}"
    text += f", difference {c.difference:+.2g}" if c.difference else ", no difference"
    if c.interval is not None and c.margin is not None:
        text += f" (90 % within {c.interval[0]:+.2g}..{c.interval[1]:+.2g}, margin ±{c.margin:.2g})"
    text += f": {verdict_in_words(c)}" + (f", {c.reason}" if c.reason else "") + _past_margin(c)
    scatters = c.test and c.verdict == "inconclusive" and c.test.resolution is None
    scatter = c.test.spread_in_margins(c.margin) if c.test and scatters else None
    return topic, text if scatter is None else f"{text}; the differences of the pairs scatter by {scatter:.2g} margins"


def _past_margin(c: Comparison) -> str:
    """Why an interval wholly past the margin decides nothing: worse or better is only what is past the wider one."""
    beyond = c.test.worse_beyond if c.test else None
    if c.verdict != "inconclusive" or c.interval is None or c.margin is None or beyond is None:
        return ""
    low, high = c.interval
    between = c.margin < low < beyond or -beyond < high < -c.margin
    if not between:
        return ""
    return f"; past the margin, and worse or better is only what is past ±{beyond:.2g}, the margin uncut for few seeds"


def _bf16(comparisons: tuple[Comparison, ...]) -> list[tuple[str, str]]:
    """How BF16 did, the first alternative."""
    judged = [c for c in comparisons if c.candidate == "bf16" and not c.is_ratio]
    raised = next((c.reason for c in judged if (c.reason or "").startswith(CRASHED)), None)
    if raised is not None:  # nothing was compared
        return [("bf16", raised)]
    text = ", ".join(f"{c.quantity.replace('_', ' ')} {verdict_in_words(c)}" for c in judged)
    return [("bf16", text)] if text else []


def _skips(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """How often the FP16 arm's scale was too large."""
    trials = diagnosis.verification.trials if diagnosis.verification else ()
    mine = [t for t in trials if t.arm == "fp16" and t.skipped_steps is not None and t.steps]
    if not mine:
        return []
    skipped = sum(t.skipped_steps or 0 for t in mine)
    over = f", those of {len(mine)} seeds together" if skipped and len(mine) > 1 else ""
    return [("skips", f"{skipped} of {sum(t.steps for t in mine)} FP16 steps{over}")]


def _foretold(prediction: Prediction | None) -> list[tuple[str, str]]:
    """How well the counts of FP32 foretold those of FP16."""
    if prediction is None:
        return []
    if prediction.median_error_points is None or prediction.p95_error_points is None:
        return [("foretold", "nothing to compare: FP16 overflowed everywhere")] if prediction.overflowed_tensors else []
    compared = sum(t.comparable for t in prediction.tensors)
    text = f"underflow as FP32 foretold it, within {prediction.median_error_points:.2f} percentage points (median)"
    text += f" and {prediction.p95_error_points:.2f} (95 %)"
    text += f", {compared} comparisons" if prediction.tensors else "; the comparisons were left out of this file"
    if prediction.overflowed_tensors:
        text += f"; {prediction.overflowed_tensors} more were broken by overflow"
    if prediction.cascade_reason is not None:
        text += f"; by the counts alone: {prediction.cascade_reason}"
    return [("foretold", text)]


def _not_done(diagnosis: Diagnosis) -> list[str]:
    lines = []
    if diagnosis.reason is not None and diagnosis.reason != NOT_ASKED_FOR:
        lines.append(diagnosis.reason)
    capture, verification = diagnosis.capture, diagnosis.verification
    if capture is not None:
        if capture.reason:
            lines.append(capture.reason)
        raised = verification is not None and capture.amp_error is not None and capture.amp_error in verification.reason
        if capture.amp_error and not raised:  # else the verdict has said so
            lines.append(f"types under autocast: {capture.amp_error}")
        if capture.operations_reason not in (None, NOT_OBSERVED):
            lines.append(f"operations: {capture.operations_reason}")
        if capture.not_seen:
            lines.append(
                "parameters used without calling their module, so its output was not seen: "
                + ", ".join(capture.not_seen)
            )
    if diagnosis.target is not None:
        lines += [note for note in diagnosis.target.notes if not note.startswith(DATA)]
    if verification is None:
        why = STOPPED_BEFORE if diagnosis.reason is None else "mixed precision was not run"
        lines.append(f"verification: {why}")
        return lines
    lines += verification.cut
    # a stage that was cut has said why already
    lines += [line for line in _unmeasured(verification.trials) if not any(_cause(line) in cut for cut in lines)]
    return lines


def _cause(line: str) -> str:
    return line.partition(": ")[2].removeprefix("not measured: ")


def _unmeasured(trials: tuple[Trial, ...]) -> list[str]:
    """What the FP16 trials could not measure, grouped by reason; of costs the first trial's alone, which has them."""
    by_reason: dict[str, list[str]] = {}
    told = {f for t in trials if t.arm == "fp16" for f in _COSTS if getattr(t, f) is not None}
    for trial in (t for t in trials if t.arm == "fp16"):
        reasons = {name: why for name, why in trial.not_measured.items() if name in {*_COSTS, "metric"} - told}
        for name, reason in reasons.items():
            by_reason.setdefault(reason, []).append(_COSTS.get(name, name))
        told |= reasons.keys() & _COSTS.keys()
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in by_reason.items()]


_COSTS = {
    "step_time_ms": "step time",
    "peak_memory_bytes": "peak memory",
    "tensor_core": "tensor-core use",
    "energy_joules_per_sample": "energy",
}
