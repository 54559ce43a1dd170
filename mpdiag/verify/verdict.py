"""One answer from all comparisons: go, go-with-changes, no-go or inconclusive."""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.diagnosis import Advice, Comparison, Trial
from mpdiag.verify.arms import BF16, FP16, FP16_PLAN
from mpdiag.verify.compare import NOT_FINITE

NAMED = 4  # modules in the verdict's sentence; the plan has all
_COSTS = ("step_time_ms", "peak_memory_bytes", "energy_joules_per_sample")


def train_with(comparisons: Sequence[Comparison]) -> str | None:
    """FP16 where it equals FP32, else FP16 with its plan where that does, else BF16 where that does, else None."""
    return next((arm for arm in (FP16, FP16_PLAN, BF16) if _state(arm, comparisons) == "equivalent"), None)


def decide(advice: Advice, trials: Sequence[Trial], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """(verdict, one sentence). FP16 decides; where it fails, FP32 islands are the way out, or BF16."""
    half, brain = _state(FP16, comparisons), _state(BF16, comparisons)
    errors = [f for f in advice.findings if f.severity == "error"]
    how, beside = _horizon(FP16, trials), _horizon(BF16, trials)
    emulation = " (emulated CUDA policy)" if any(t.emulated for t in trials) else ""
    islands = _islands(advice) if _state(FP16_PLAN, comparisons) == "equivalent" else None
    if half == "equivalent":
        if errors:
            cure = f": keep {islands} in FP32, which equals FP32 too" if islands else ""
            return (
                "go-with-changes",
                f"FP16{emulation} equals FP32 {how}, but {errors[0].code} has to be mended first{cure}",
            )
        gain = _gain(FP16, comparisons)
        return "go", f"FP16{emulation} with the recommended loss scale equals FP32 {how}{gain}"
    why = _why(FP16, comparisons)
    if islands:
        gain = _gain(FP16_PLAN, comparisons)
        return (
            "go-with-changes",
            f"keep {islands} in FP32: then FP16{emulation} equals FP32 {_horizon(FP16_PLAN, trials)}{gain}; "
            f"as it is, it does not ({why})",
        )
    if half == "worse":
        if brain == "equivalent":
            return "go-with-changes", f"train in BF16, which equals FP32 {beside}; FP16{emulation} does not ({why})"
        if brain == "worse":
            return "no-go", f"neither FP16{emulation} nor BF16 keeps up with FP32 {how} ({why})"
        return "inconclusive", f"FP16{emulation} falls behind FP32 {how} ({why}); BF16 is undecided"
    other = ". BF16 equals FP32" if brain == "equivalent" else ""
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
    verdicts = [c.verdict for c in comparisons if c.candidate == arm and c.quantity not in _COSTS]
    if "worse" in verdicts:
        return "worse"
    return "equivalent" if verdicts and set(verdicts) <= {"equivalent", "better"} else "inconclusive"


def _why(arm: str, comparisons: Sequence[Comparison]) -> str:
    for verdict in ("worse", "inconclusive"):
        for c in comparisons:
            if c.candidate == arm and c.verdict == verdict and c.quantity not in _COSTS:
                if c.difference is None:
                    return f"{c.quantity} {c.reason}" if c.reason == NOT_FINITE else f"{c.quantity}: {c.reason}"
                gap = f"{c.quantity} differs by {c.difference:+.3g}, margin {c.margin:.3g}"
                return f"{gap}, {c.reason}" if c.reason else gap
    return "it was not run"


def _gain(arm: str, comparisons: Sequence[Comparison]) -> str:
    """What it costs or saves, where that was measured: a go without a gain should say so."""
    parts = []
    for c in comparisons:
        if c.candidate == arm and c.difference and c.quantity == "step_time_ms" and c.verdict == "inconclusive":
            parts.append(f"step time x{c.difference:.2f}, on a GPU that was mostly idle")
        elif c.candidate == arm and c.difference and c.quantity == "step_time_ms":
            speed = 1 / c.difference
            parts.append(f"{speed:.2f}x as fast" if speed >= 1 else f"slower, {speed:.2f}x the speed")
        if c.candidate == arm and c.difference and c.quantity == "peak_memory_bytes":
            parts.append(f"{c.difference:.2f}x the memory")
    return "; " + ", ".join(parts) if parts else ""
