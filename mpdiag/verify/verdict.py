"""One answer from all comparisons: go, go-with-changes, no-go or inconclusive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpdiag.advice.checks.evaluation import EVALUATION_FAILS
from mpdiag.advice.checks.optimizer_state import NOTHING_TRAINS
from mpdiag.advice.from_runs import advise_on_trials, with_findings
from mpdiag.arm_names import BASELINE, BF16, FP16, FP16_PLAN
from mpdiag.diagnosis import Advice, Comparison, Finding, LossScaleAdvice, SelfTest, Trial, Verification
from mpdiag.verify.compare import NOT_FINITE, NOT_GIVEN
from mpdiag.verify.cost_ratios import ENERGY, PEAK_MEMORY, STEP_TIME
from mpdiag.verify.repeat import why_it_strays
from mpdiag.verify.verdict_words import gain_words, horizon, islands_words, raised_by, scale_words

PASSED = {"equivalent": "equals FP32", "noninferior": "is not worse than FP32"}
"""The states in which an arm may be trained in, and how the sentence says it."""

UNJUDGED = "unjudged"  # passed in its loss, while evaluate() gave no metric to judge: no plain go, and no harm seen

TELL_HOW = ("MP303", "MP305", "MP502")
"""Errors whose remedy mends an arm that raises; MP304's may, where it has the line, and MP607's names nothing."""

FIRM_SEEDS = 5  # fewer are preliminary (docs/verification.md): the power of a paired test of equivalence
_COSTS = (STEP_TIME, PEAK_MEMORY, ENERGY)


def judged(found: Verification, advice: Advice, selftest: SelfTest | None = None) -> Verification:
    """The verification with its verdict: what the comparisons say, and what the runs showed that no loss tells.

    Where FP32 did not repeat itself nothing is decided: what two of its runs differ by, two arms may differ by for no
    fault of a precision. selftest: of the capture, which tells why it did not.

    A run may keep up in its loss though the GradScaler skipped half of its steps, or a layer's gradient was zero: such
    errors (MP6xx) have to be mended before a go, like those of the advice.
    """
    if not any(trial.arm == FP16 for trial in found.trials):
        return found
    if found.strays:
        return replace(
            found, verdict="inconclusive", reason=f"{found.strays}: {why_it_strays(selftest)}", train_with=None
        )
    found = replace(found, train_with=train_with(found.comparisons, advice))
    advice = with_findings(advice, advise_on_trials(found, advice))
    verdict, reason = decide(advice, found.trials, found.comparisons)
    return replace(found, verdict=verdict, reason=reason)


def train_with(comparisons: Sequence[Comparison], advice: Advice | None = None) -> str | None:
    """FP16 where it keeps up with FP32, else FP16 with its plan where that does, else BF16 where that does, else None.

    A plan that leaves little in FP16 comes after a BF16 that keeps up (plan.LEAST_HALF_SHARE).

    FP16 goes before BF16 also where only its loss could be judged, for evaluate() is to be mended then, not the
    training. Three arms that were all worse would get three chances to pass by mistake: at most 15 % instead of 5 %.
    None where the advice says that nothing trains.
    """
    if advice is not None and _nothing_trains(advice):
        return None
    order = (FP16, BF16, FP16_PLAN) if _bf16_first(advice, comparisons) else (FP16, FP16_PLAN, BF16)
    states = {arm: _state(arm, comparisons) for arm in order}
    if states[FP16] == UNJUDGED and states[FP16_PLAN] not in PASSED:
        return FP16
    passed = [arm for arm, state in states.items() if state in PASSED]
    return next(iter([*passed, *(arm for arm, state in states.items() if state == UNJUDGED)]), None)


def _bf16_first(advice: Advice | None, comparisons: Sequence[Comparison]) -> bool:
    """Whether FP16 needs a plan that keeps most products in FP32, so that it saves little, and BF16 keeps up."""
    plan = advice.plan if advice is not None else None
    if plan is None or not plan.mostly_fp32:
        return False
    return _state(FP16, comparisons) == "worse" and _state(BF16, comparisons) in PASSED


def decide(advice: Advice, trials: Sequence[Trial], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """(verdict, one sentence). FP16 decides; where it fails, FP32 islands are the way out, or BF16.

    Where no weight changes in FP32, nothing can be shown to train: all but a no-go becomes inconclusive, for that.
    """
    verdict, reason = _decide(advice, trials, comparisons)
    if verdict != "no-go" and (found := _nothing_trains(advice)):
        return "inconclusive", f"{found.message} ({found.code})"
    return verdict, reason


def _nothing_trains(advice: Advice) -> Finding | None:
    return next((finding for finding in advice.findings if finding.code == NOTHING_TRAINS), None)


def _decide(advice: Advice, trials: Sequence[Trial], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    half, brain, planned = (_state(arm, comparisons) for arm in (FP16, BF16, FP16_PLAN))
    errors = [f for f in advice.findings if f.severity == "error"]
    how = horizon(FP16, trials)
    emulation = " (emulated CUDA policy)" if any(t.emulated for t in trials) else ""
    islands = islands_words(advice) if planned in PASSED and not _bf16_first(advice, comparisons) else None
    if half in PASSED:
        over = _shown(FP16, trials, comparisons)
        if errors:
            cure = f": keep {islands} in FP32, which {PASSED[planned]} too" if islands else ""
            return (
                "go-with-changes",
                f"FP16{emulation} {PASSED[half]} {over}, but {errors[0].code} has to be mended first{cure}",
            )
        gain = gain_words(FP16, comparisons)
        if _no_half(advice.loss_scale) and _bit_identical(FP16, trials):
            return (
                "go",
                f"autocast changes nothing here{emulation}: no gradient is FP16 under it, and every loss of the FP16 "
                f"runs is bit-identical to FP32's {over}{gain}",
            )
        return "go", f"FP16{emulation} {scale_words(advice.loss_scale)} {PASSED[half]} {over}{gain}"
    why = _why(FP16, comparisons)
    if islands:
        gain, bare = gain_words(FP16_PLAN, comparisons), "worse" if half == "worse" else "undecided"
        over = _shown(FP16_PLAN, trials, comparisons)
        return (
            "go-with-changes",
            f"keep {islands} in FP32: then FP16{emulation} {PASSED[planned]} {over}{gain}; as it is, "
            f"it is {bare} ({why})",
        )
    if half == UNJUDGED:
        first = ", ".join(dict.fromkeys([*(f.code for f in errors), EVALUATION_FAILS]))
        other = f". BF16 {PASSED[brain]}" if brain in PASSED else ""
        found = _by_loss(FP16, trials, comparisons)
        return "go-with-changes", f"FP16{emulation} {found}: mend {first}, then verify again{other}"
    if half == "worse":
        raised = raised_by(FP16, trials)
        mend = _mending(errors) if raised else ""
        if brain in PASSED:
            other = f"raises {raised}" + (f": mend {mend} for it" if mend else "") if raised else f"is worse ({why})"
            over = _shown(BF16, trials, comparisons)
            return "go-with-changes", f"train in BF16, which {PASSED[brain]} {over}; FP16{emulation} {other}"
        for arm, name in ((FP16_PLAN, f"FP16 with {islands_words(advice)} in FP32"), (BF16, "BF16")):
            if _state(arm, comparisons) == UNJUDGED:
                found = _by_loss(arm, trials, comparisons)
                other = f"raises {raised}" if raised else f"is worse ({why})"
                mending = f"mend {EVALUATION_FAILS}, then verify again"
                return "go-with-changes", f"{name} {found}: {mending}; FP16{emulation} as it is {other}"
        if raised:
            return _stopped(f"FP16{emulation}", raised, mend, raised_by(BF16, trials), brain, advice)
        if brain == "worse":
            return "no-go", f"neither FP16{emulation} nor BF16 keeps up with FP32 {how} ({why})"
        return "inconclusive", f"FP16{emulation} falls behind FP32 {how} ({why}); BF16 is undecided"
    other = f". BF16 {PASSED[brain]}" if brain in PASSED else ""
    if brain == UNJUDGED:
        other = f". BF16 {_by_loss(BF16, trials, comparisons)}"
    return "inconclusive", f"FP16{emulation} against FP32 {how} is undecided: {why}{other}"


def _by_loss(arm: str, trials: Sequence[Trial], comparisons: Sequence[Comparison]) -> str:
    """What an arm passed in, and what evaluate() left open."""
    judged = _judged(arm, comparisons)
    told, left = ([c for c in judged if (c.verdict == NOT_GIVEN) is which] for which in (False, True))
    names = [" and ".join(c.quantity.replace("_", " ") for c in each) for each in (told, left)]
    over = _shown(arm, trials, comparisons)
    return f"{PASSED[_of(told)]} in its {names[0]} {over}, but its evaluate() gave no {names[1]} to judge"


def _stopped(half: str, raised: str, mend: str, brain_raised: str, brain: str, advice: Advice) -> tuple[str, str]:
    """Where FP16 raises and BF16 is no way out: nothing was judged, so no word on steps and seeds."""
    if mend:
        return "go-with-changes", f"{half} raises: mend {mend}, then scan again ({raised})"
    told = f"{half} raises {raised}"
    missing = any(f.code == "MP304" and f.severity == "info" for f in advice.findings)
    if missing:  # the CPU has no such operator: says nothing about the GPU
        return "inconclusive", f"{told}; this CPU cannot emulate it, and a CUDA GPU may well run it"
    if brain == "worse":
        return "no-go", f"{told}; BF16 " + ("raises too" if brain_raised else "falls behind FP32")
    return "inconclusive", f"{told}; BF16 is undecided"


def _mending(errors: Sequence[Finding]) -> str:
    """The codes of the findings that say how to mend what raises; empty where none does."""
    known = [f.code for f in errors if f.code in TELL_HOW]
    return ", ".join(dict.fromkeys(known or [f.code for f in errors if f.code == "MP304" and f.source]))


def _no_half(scale: LossScaleAdvice) -> bool:
    """Whether no FP16 gradient was seen, so that there was nothing to choose a loss scale for."""
    return scale.log2_scale is None and scale.lower_log2 is None and scale.upper_log2 is None


def _bit_identical(arm: str, trials: Sequence[Trial]) -> bool:
    """Whether an arm's losses equal the baseline's to the last bit, in every seed."""
    losses = {(t.arm, t.seed): t.losses for t in trials}
    seeds = {t.seed for t in trials if t.arm == arm}
    return bool(seeds) and all(losses[arm, s] and losses[arm, s] == losses.get((BASELINE, s)) for s in seeds)


def _shown(arm: str, trials: Sequence[Trial], comparisons: Sequence[Comparison]) -> str:
    """The horizon of what passed, and that few seeds are preliminary; twins of one run count once."""
    seeds = {t.seed for t in trials if t.arm == arm}
    distinct = min([len(seeds), *(c.seeds for c in _judged(arm, comparisons))])
    smoke = " (preliminary: five seeds make it firm)" if distinct < FIRM_SEEDS else ""
    empty = [c.quantity.replace("_", " ") for c in _quantities(arm, comparisons) if not c.decides]
    but = f", but for {' and '.join(empty)}, about zero in FP32 too" if empty else ""
    return f"{horizon(arm, trials)}{smoke}{but}"


def _state(arm: str, comparisons: Sequence[Comparison]) -> str:
    """worse in any quantity; equivalent (or better) in all; noninferior where some are only shown not to be worse.

    UNJUDGED where only metrics that evaluate() does not give under the arm's precision are open.
    """
    judged = _judged(arm, comparisons)
    told = [c for c in judged if c.verdict != NOT_GIVEN]
    state = _of(told)
    return UNJUDGED if state in PASSED and len(told) < len(judged) else state


def _of(judged: Sequence[Comparison]) -> str:
    if any(c.verdict == "worse" for c in judged):
        return "worse"
    if not judged or any(map(_undecided, judged)):
        return "inconclusive"
    return "equivalent" if all(c.verdict in ("equivalent", "better") for c in judged) else "noninferior"


def _judged(arm: str, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """An arm's losses and metrics that decide; its costs do not."""
    return [c for c in _quantities(arm, comparisons) if c.decides]


def _quantities(arm: str, comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [c for c in comparisons if c.candidate == arm and not c.is_ratio and c.quantity not in _COSTS]


def _undecided(comparison: Comparison) -> bool:
    shown = comparison.test is not None and comparison.test.noninferior
    return comparison.verdict not in ("equivalent", "better", "worse") and not shown


def _why(arm: str, comparisons: Sequence[Comparison]) -> str:
    judged = _judged(arm, comparisons)
    for c in [c for c in judged if c.verdict == "worse"] + [c for c in judged if _undecided(c)]:
        if c.difference is None:
            blown = (c.reason or "").startswith(NOT_FINITE)
            return f"{c.quantity} {c.reason}" if blown else f"{c.quantity}: {c.reason}"
        gap = f"{c.quantity} differs by {c.difference:+.3g}, margin {c.margin:.3g}"
        return f"{gap}, {c.reason}" if c.reason else gap
    return "it was not run"
