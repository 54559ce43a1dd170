"""The first screen: the verdict's words and the four boxes that answer in twenty seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from markupsafe import Markup

from mpdiag.arm_names import FP32_CONFIGURED, TF32
from mpdiag.diagnosis import Comparison, Diagnosis, LossScaleAdvice, Trial
from mpdiag.other_formats import FP16_ISLANDS
from mpdiag.report.accuracy_words import standing, verdict_in_words
from mpdiag.report.cost_words import REFERENCES, ratio_of
from mpdiag.report.digest import STOPPED_BEFORE
from mpdiag.report.html_numbers import THIN, power, prose, share, size
from mpdiag.report.html_verification import NO_REASON, difference, interval, quantity
from mpdiag.report.next_steps import instead_of_fp16
from mpdiag.report.read_again import second_reading
from mpdiag.report.scale_words import spoken

if TYPE_CHECKING:
    from mpdiag.plan import IslandPlan

VERDICTS = {
    "go": "Go",
    "go-with-changes": "Go, with changes",
    "no-go": "No go",
    "inconclusive": "Inconclusive",
}
ARROW = Markup(' <span class="arrow">→</span> ')


@dataclass(frozen=True)
class Box:
    """One answer. `value` None: not measured, and `reason` says why."""

    title: str
    value: Markup | None
    lines: tuple[Markup, ...] = ()
    reason: str = ""
    href: str | None = None


def _from_to(before: str, after: str) -> Markup:
    """Two figures with an arrow; a unit that both have is said once, so that they stay on one line."""
    unit = before.rpartition(THIN)[2]
    if unit == after.rpartition(THIN)[2]:
        before = before.removesuffix(f"{THIN}{unit}")
    return Markup(before) + ARROW + Markup(after)


def verdict_words(diagnosis: Diagnosis) -> tuple[str, str, str]:
    """(css key, words, reason) of the verdict."""
    run = diagnosis.verification
    if run is None:
        return "none", "Not verified", why_not_verified(diagnosis)
    if run.verdict is None:
        return "none", "No verdict", run.reason
    return run.verdict, VERDICTS.get(run.verdict, run.verdict), run.reason


def why_not_verified(diagnosis: Diagnosis) -> str:
    """The reason there is no verification."""
    return diagnosis.reason or STOPPED_BEFORE


def why_no_advice(diagnosis: Diagnosis) -> str:
    """The reason there is no advice."""
    capture = diagnosis.capture
    return (capture.reason if capture else None) or diagnosis.reason or "no gradients were captured"


def boxes(diagnosis: Diagnosis) -> list[Box]:
    """Loss scale, gradients lost, step time where it was measured, peak memory, accuracy: in this order."""
    scale = diagnosis.advice.loss_scale if diagnosis.advice else None
    return [
        _scale_box(scale, diagnosis),
        _lost_box(scale, diagnosis),
        *_time_boxes(diagnosis),
        _memory_box(diagnosis),
        _accuracy_box(diagnosis),
    ]


def _scale_box(scale: LossScaleAdvice | None, diagnosis: Diagnosis) -> Box:
    title = "Loss scale for FP16" if instead_of_fp16(diagnosis) else "Recommended loss scale"
    if scale is None:
        return Box(title, None, reason=why_no_advice(diagnosis))
    plan = diagnosis.advice.plan if diagnosis.advice else None
    if diagnosis.train_in == FP16_ISLANDS and plan is not None:
        return _plan_box(title, plan, scale)
    if scale.lower_log2 is None or scale.upper_log2 is None:
        return Box(title, None, reason=scale.reason, href="#loss-scale")
    low, high = power(scale.lower_log2), power(scale.upper_log2)
    if scale.log2_scale is None:
        empty = Markup("needs at least {}, allows at most {}").format(low, high)
        return Box(title, Markup("none serves all"), (empty,), href="#loss-scale")
    window = Markup("feasible from {} to {}").format(low, high)
    if scale.mode == "none":
        return Box(
            title, Markup("not needed"), (Markup("scale 1 loses nothing that counts"), window), "", "#loss-scale"
        )
    shown = power(scale.log2_scale)
    if 0 <= scale.log2_scale <= 24:
        shown += Markup(' <span class="plain">= {}</span>').format(2**scale.log2_scale)
    return Box(title, shown, (Markup("{} scaling").format(scale.mode), window), href="#loss-scale")


def _plan_box(title: str, plan: IslandPlan, scale: LossScaleAdvice) -> Box:
    """The scale that the code to paste has: with the plan's modules in FP32 other gradients bind."""
    lines = [Markup("with the plan\u2019s modules in FP32")]
    if plan.log2_scale is None or plan.mode == "none":
        shown = Markup("not needed")
    else:
        shown = power(plan.log2_scale)
        lines.append(Markup("{} scaling").format(plan.mode))
    if scale.log2_scale is not None and scale.log2_scale != plan.log2_scale:
        lines.append(Markup("without them: {}").format(power(scale.log2_scale)))
    return Box(title, shown, tuple(lines), href="#loss-scale")


def _lost_box(scale: LossScaleAdvice | None, diagnosis: Diagnosis) -> Box:
    title = "Gradients lost to underflow"
    if scale is None or scale.underflow_before is None:
        return Box(title, None, reason=scale.reason if scale else why_no_advice(diagnosis))
    shown = Markup(share(scale.underflow_before))
    where = Markup("of the non-zero elements, at scale 1")
    if scale.underflow_after is not None and scale.log2_scale:
        shown = _from_to(share(scale.underflow_before), share(scale.underflow_after))
        where = Markup("of the non-zero elements, at scale 1 → at {}").format(power(scale.log2_scale))
    return Box(title, shown, (where, _energy(scale)), href="#loss-scale")


def _energy(scale: LossScaleAdvice) -> Markup:
    """The most that a tensor loses of its squared norm: a share of all tensors' would hide one that is lost whole."""
    worst = scale.most_lost_before
    if worst is None:
        return Markup("weighted by energy: not measured")
    shown = Markup(share(worst.share))
    if scale.most_lost_after is not None and scale.log2_scale:
        shown = _from_to(shown, share(scale.most_lost_after.share))
    return Markup('<span title="{}">{} of the squared norm in the worst tensor</span>').format(
        spoken(worst.tensor), shown
    )


def _time_boxes(diagnosis: Diagnosis) -> list[Box]:
    """Where nothing was timed there is no box: memory's says why already."""
    found = _cost(diagnosis, "step_time_ms")
    timed = diagnosis.verification is not None and diagnosis.verification.costs.timing is not None
    if not timed or found is None or found.baseline_value is None or found.candidate_value is None:
        return []
    shown = _from_to(*(f"{x:.3g}{THIN}ms" for x in (found.baseline_value, found.candidate_value)))
    between = interval(found)
    lines = [difference(found)]
    lines.append(Markup("95\u202f% interval {}").format(between) if between else None)
    why = Markup(": {}").format(prose(found.reason)) if found.verdict == "inconclusive" and found.reason else ""
    lines.append(Markup("{}{}").format(TIME_WORDS.get(found.verdict, found.verdict), why))
    lines += _nearer(diagnosis)
    run = diagnosis.verification
    again = second_reading(run, found) if run is not None else None
    lines.append(prose(f"but {again}") if again else None)
    return [Box("Step time, FP32 → FP16", shown, tuple(x for x in lines if x), href="#speed")]


def _nearer(diagnosis: Diagnosis) -> list[Markup]:
    """The same against what the user has already, or could have; of TF32 too where FP16 was not shown to be faster."""
    run = diagnosis.verification
    found = [ratio_of(run, "step_time_ms", "fp16", name) for name in (FP32_CONFIGURED, TF32)] if run else []
    told = [c for c in found if c is not None]
    shown = told[:1] + [c for c in told[1:] if c.verdict != "better"]
    return [
        Markup("against {}: {}, {}").format(REFERENCES[c.baseline], difference(c), TIME_WORDS.get(c.verdict, c.verdict))
        for c in shown
    ]


TIME_WORDS = {"better": "faster", "worse": "slower", "equivalent": "no difference", "inconclusive": "undecided"}


def _cost(diagnosis: Diagnosis, quantity_name: str) -> Comparison | None:
    """FP16 against FP32 in one cost."""
    comparisons = diagnosis.verification.comparisons if diagnosis.verification else ()
    mine = (c for c in comparisons if c.quantity == quantity_name and (c.baseline, c.candidate) == ("fp32", "fp16"))
    return next(mine, None)


def _memory_box(diagnosis: Diagnosis) -> Box:
    title = "Peak memory, FP32 → FP16"
    if diagnosis.verification is None:
        return Box(title, None, reason=why_not_verified(diagnosis))
    found = _cost(diagnosis, "peak_memory_bytes")
    if found is not None and found.baseline_value is not None and found.candidate_value is not None:
        shown = _from_to(size(found.baseline_value), size(found.candidate_value))
        change = difference(found)
        where = "#memory" if diagnosis.verification.costs.memory else "#verification"
        return Box(title, shown, (change,) if change else (), href=where)
    before, after = _peaks(diagnosis.verification.trials)
    if before is not None and after is not None:
        lines = (Markup("×\u202f{} of FP32").format(f"{after / before:.3g}"), Markup("median of the seeds"))
        return Box(title, _from_to(size(before), size(after)), lines, href="#verification")
    reason = found.reason if found else _missing_peak(diagnosis.verification.trials)
    return Box(title, None, reason=reason or NO_REASON, href="#verification")


def _peaks(trials: tuple[Trial, ...]) -> tuple[float | None, float | None]:
    """Median peak memory of the first FP32 arm and of the first FP16 arm."""

    def peak(wanted: str) -> float | None:
        arm = next((t.arm for t in trials if wanted in t.precision.upper()), None)
        seen = [t.peak_memory_bytes for t in trials if t.arm == arm and t.peak_memory_bytes is not None]
        return median(seen) if seen else None

    return peak("FP32"), peak("FP16")


def _missing_peak(trials: tuple[Trial, ...]) -> str | None:
    told = (t.not_measured.get("peak_memory_bytes") for t in trials)
    return next((reason for reason in told if reason), None)


def _accuracy_box(diagnosis: Diagnosis) -> Box:
    if diagnosis.verification is None:
        return Box("Accuracy difference", None, reason=why_not_verified(diagnosis))
    quality = [c for c in diagnosis.verification.comparisons if not c.is_ratio]
    quality.sort(key=lambda c: (c.candidate != "fp16", c.difference is None, c.quantity == "loss"))
    found = quality[0] if quality else None
    if found is None:
        return Box("Accuracy difference", None, reason=diagnosis.verification.reason, href="#verification")
    words = quantity(found)
    title = f"{words[:1].upper()}{words[1:]}, FP16 against FP32" if found.candidate == "fp16" else words
    shown, between = difference(found), interval(found)
    if shown is None:
        return Box(title, None, reason=found.reason or NO_REASON, href="#verification")
    spread = Markup("90\u202f% interval {}").format(between) if between else Markup("interval: not measured")
    seeds = f"{found.seeds} paired seed{'s' if found.seeds != 1 else ''}"
    told = Markup("{}; {}").format(_whole_verdict(found, quality), seeds)
    if between is None and found.reason:
        spread += Markup(": {}").format(prose(found.reason))
    return Box(title, shown, (spread, told), href="#verification")


def _whole_verdict(shown: Comparison, quality: Sequence[Comparison]) -> str:
    """The verdict on what is shown; with that on the arm's weakest quantity where it is weaker, which is the arm's."""
    weakest = min((c for c in quality if c.candidate == shown.candidate), key=standing, default=shown)
    words = verdict_in_words(shown)
    if standing(weakest) >= standing(shown):
        return words
    return f"{words}, but the {quantity(weakest)} is {verdict_in_words(weakest)}"
