"""The parts of the verdict's sentence: with what scale, over how long, where it raised, what is gained."""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.arm_names import BASELINE, FP32_CONFIGURED, TF32
from mpdiag.diagnosis import Advice, Comparison, LossScaleAdvice, Trial
from mpdiag.verify.cost_ratios import PEAK_MEMORY, STEP_TIME

NAMED = 4  # modules in the verdict's sentence; the plan has all
NEARER = {FP32_CONFIGURED: "your present settings", TF32: "TF32"}  # what users have, or can have; the first goes first


def raised_by(arm: str, trials: Sequence[Trial]) -> str:
    """Where the first run of an arm that raised did so, and with what; empty where none did."""
    first = next((t for t in trials if t.arm == arm and t.error), None)
    return f"at step {first.steps + 1}: {first.error}" if first else ""


def scale_words(scale: LossScaleAdvice) -> str:
    """With what loss scale an arm was trained."""
    if scale.log2_scale is not None and scale.mode != "none":
        return "with the recommended loss scale"
    if scale.log2_scale is None and scale.upper_log2 is not None:
        return f"with a loss scale that starts at 2^{scale.upper_log2}, for none serves all,"
    return "without a loss scale"


def islands_words(advice: Advice) -> str:
    """The plan's modules, for a sentence."""
    names = advice.plan.spoken if advice.plan else ()
    shown = ", ".join(names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def horizon(arm: str, trials: Sequence[Trial]) -> str:
    """How long and how often an arm was trained."""
    mine = [t for t in trials if t.arm == arm]
    seeds = len({t.seed for t in mine})
    if not mine:
        return ""
    steps = max(t.steps for t in mine)
    return f"over {steps} step{'' if steps == 1 else 's'} and {seeds} seed{'s' if seeds > 1 else ''}"


def gain_words(arm: str, comparisons: Sequence[Comparison]) -> str:
    """What it costs or saves beside FP32, where that was measured: a go without a gain should say so.

    A step time is told against IEEE FP32, and against what the user has already: the baseline chosen is most of a gain.
    """
    mine = [c for c in comparisons if c.candidate == arm and c.difference]
    times = {c.baseline: c for c in mine if c.quantity == STEP_TIME}
    parts = []
    if time := times.get(BASELINE):
        nearer = next((times[name] for name in NEARER if name in times), None)
        parts.append(_speed(time, "" if nearer is None else "IEEE FP32"))
        parts += [] if nearer is None else [_speed(nearer, NEARER[nearer.baseline])]
    parts += [f"{c.difference:.2f}x the memory" for c in mine if (c.quantity, c.baseline) == (PEAK_MEMORY, BASELINE)]
    return "; " + ", ".join(parts) if parts else ""


def _speed(time: Comparison, than: str) -> str:
    """The speed with its interval; where nothing is decided, the ratio of times."""
    ratio = time.difference or 1.0
    if time.verdict == "equivalent":
        return f"no faster and no slower{f' than {than}' if than else ''}"
    if time.verdict == "inconclusive":
        return f"step time x{ratio:.2f}{f' that of {than}' if than else ''}, undecided"
    between = f" ({1 / time.interval[1]:.2f} to {1 / time.interval[0]:.2f})" if time.interval else ""
    if ratio <= 1:
        return f"{1 / ratio:.2f}x as fast{f' as {than}' if than else ''}{between}"
    return f"slower{f' than {than}' if than else ''}, {1 / ratio:.2f}x the speed{between}"
