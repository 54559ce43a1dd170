"""One answer from all comparisons: go, go-with-changes, no-go or inconclusive."""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.advice.checks.optimizer_state import NOTHING_TRAINS
from mpdiag.diagnosis import Advice, Comparison, Finding, Trial
from mpdiag.verify.arms import BASELINE, BF16, FP16, FP16_PLAN
from mpdiag.verify.compare import NOT_FINITE

PASSED = {"equivalent": "equals FP32", "noninferior": "is not worse than FP32"}
"""The states in which an arm may be trained in, and how the sentence says it."""

NAMED = 4  # modules in the verdict's sentence; the plan has all
_COSTS = ("step_time_ms", "peak_memory_bytes", "energy_joules_per_sample")


def train_with(comparisons: Sequence[Comparison], advice: Advice | None = None) -> str | None:
    """FP16 where it keeps up with FP32, else FP16 with its plan where that does, else BF16 where that does, else None.

    Three arms that were all worse would get three chances to pass by mistake: at most 15 % instead of 5 %. None where
    the advice says that nothing trains.
    """
    if advice is not None and _nothing_trains(advice):
        return None
    return next((arm for arm in (FP16, FP16_PLAN, BF16) if _state(arm, comparisons) in PASSED), None)


def decide(advice: Advice, trials: Sequence[Trial], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """(verdict, one sentence). FP16 decides; where it fails, FP32 islands are the way out, or BF16.

    Where no weight changes in FP32, nothing can be shown to train: a go becomes inconclusive.
    """
    verdict, reason = _decide(advice, trials, comparisons)
    if verdict in ("go", "go-with-changes") and (found := _nothing_trains(advice)):
        return "inconclusive", f"{found.message} ({found.code})"
    return verdict, reason


def _nothing_trains(advice: Advice) -> Finding | None:
    return next((finding for finding in advice.findings if finding.code == NOTHING_TRAINS), None)


def _decide(advice: Advice, trials: Sequence[Trial], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    half, brain, planned = (_state(arm, comparisons) for arm in (FP16, BF16, FP16_PLAN))
    errors = [f for f in advice.findings if f.severity == "error"]
    how, beside = _horizon(FP16, trials), _horizon(BF16, trials)
    emulation = " (emulated CUDA policy)" if any(t.emulated for t in trials) else ""
    islands = _islands(advice) if planned in PASSED else None
    if half in PASSED:
        if errors:
            cure = f": keep {islands} in FP32, which {PASSED[planned]} too" if islands else ""
            return (
                "go-with-changes",
                f"FP16{emulation} {PASSED[half]} {how}, but {errors[0].code} has to be mended first{cure}",
            )
        gain = _gain(FP16, comparisons)
        return "go", f"FP16{emulation} with the recommended loss scale {PASSED[half]} {how}{gain}"
    why = _why(FP16, comparisons)
    if islands:
        gain, bare = _gain(FP16_PLAN, comparisons), "worse" if half == "worse" else "undecided"
        return (
            "go-with-changes",
            f"keep {islands} in FP32: then FP16{emulation} {PASSED[planned]} {_horizon(FP16_PLAN, trials)}{gain}; "
            f"as it is, it is {bare} ({why})",
        )
    if half == "worse":
        if brain in PASSED:
            return (
                "go-with-changes",
                f"train in BF16, which {PASSED[brain]} {beside}; FP16{emulation} is worse ({why})",
            )
        if brain == "worse":
            return "no-go", f"neither FP16{emulation} nor BF16 keeps up with FP32 {how} ({why})"
        return "inconclusive", f"FP16{emulation} falls behind FP32 {how} ({why}); BF16 is undecided"
    other = f". BF16 {PASSED[brain]}" if brain in PASSED else ""
    return "inconclusive", f"FP16{emulation} against FP32 {how} is undecided: {why}{other}"


def _islands(advice: Advice) -> str:
    """The plan's modules, for a sentence."""
    names = advice.plan.keep_fp32 if advice.plan else ()
    shown = ", ".join(names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def _horizon(arm: str, trials: Sequence[Trial]) -> str:
    """How long and how often an arm was trained."""
    mine = [t for t in trials if t.arm == arm]
    seeds = len({t.seed for t in mine})
    return f"over {max(t.steps for t in mine)} steps and {seeds} seed{'s' if seeds > 1 else ''}" if mine else ""


def _state(arm: str, comparisons: Sequence[Comparison]) -> str:
    """worse in any quantity; equivalent (or better) in all; noninferior where some are only shown not to be worse."""
    judged = _judged(arm, comparisons)
    if any(c.verdict == "worse" for c in judged):
        return "worse"
    if not judged or any(map(_undecided, judged)):
        return "inconclusive"
    return "equivalent" if all(c.verdict in ("equivalent", "better") for c in judged) else "noninferior"


def _judged(arm: str, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """An arm's losses and metrics; its costs decide nothing."""
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


def _gain(arm: str, comparisons: Sequence[Comparison]) -> str:
    """What it costs or saves beside FP32, where that was measured: a go without a gain should say so."""
    found = {c.quantity: c for c in comparisons if c.candidate == arm and c.baseline == BASELINE and c.difference}
    parts = []
    if time := found.get("step_time_ms"):
        parts.append(_speed(time))
    if memory := found.get("peak_memory_bytes"):
        parts.append(f"{memory.difference:.2f}x the memory")
    return "; " + ", ".join(parts) if parts else ""


def _speed(time: Comparison) -> str:
    """The speed with its interval; where nothing is decided, the ratio of times."""
    ratio = time.difference or 1.0
    if time.verdict == "equivalent":
        return "no faster and no slower"
    if time.verdict == "inconclusive":
        return f"step time x{ratio:.2f}, undecided"
    between = f" ({1 / time.interval[1]:.2f} to {1 / time.interval[0]:.2f})" if time.interval else ""
    return f"{1 / ratio:.2f}x as fast{between}" if ratio <= 1 else f"slower, {1 / ratio:.2f}x the speed{between}"
