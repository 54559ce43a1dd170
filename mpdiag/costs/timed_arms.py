"""What other ways to train were timed beside the arm that is advised: TF32 alone, and FP16 through torch.compile."""

from __future__ import annotations

from dataclasses import dataclass

from mpdiag.arm_names import BASELINE, BF16, FP16, FP16_COMPILED, TF32
from mpdiag.diagnosis import Comparison, Verification

STEP_TIME = "step_time_ms"


@dataclass(frozen=True)
class CompiledStep:
    """FP16 through torch.compile beside plain FP16: both over IEEE FP32's step, and their milliseconds.

    faster: its interval lies wholly below plain FP16's; slower: wholly above. Neither: the two are not told apart.
    """

    step_ms: float
    plain_ms: float
    over_fp32: float
    faster: bool
    slower: bool


def step_ratio(run: Verification | None, arm: str, baseline: str = BASELINE) -> Comparison | None:
    """An arm's step time over a baseline's; None where the two were not timed."""
    found = (
        c
        for c in (run.comparisons if run else ())
        if (c.quantity, c.candidate, c.baseline) == (STEP_TIME, arm, baseline) and c.verdict != "not-measured"
    )
    return next((c for c in found if c.difference), None)


def as_fast_in_tf32(run: Verification | None, arm: str) -> Comparison | None:
    """The arm's step time over TF32's where the arm was not shown to be faster; None where it was, or was not timed.

    None too where the arm takes longer than IEEE FP32: then no TF32 is needed to be faster than it.
    """
    plain, mine = step_ratio(run, arm), step_ratio(run, arm, TF32)
    if mine is None or mine.verdict == "better" or plain is None or plain.verdict == "worse":
        return None
    return mine


def tf32_words(c: Comparison) -> str:
    """What `as_fast_in_tf32` found, as a sentence without its full stop."""
    name = "FP16" if c.candidate == FP16 else c.candidate
    told = {"worse": "is faster", "equivalent": "is as fast within 3 %"}.get(c.verdict, "may be as fast, undecided")
    times = f": {c.baseline_value:.3g} ms a step to {name}'s {c.candidate_value:.3g}" if c.candidate_value else ""
    return f"TF32 alone {told}{times}" + ("" if c.candidate == BF16 else ", and it needs no loss scale")


def compiled_step(run: Verification | None) -> CompiledStep | None:
    """FP16 through torch.compile, where both it and plain FP16 were timed."""
    plain, made = step_ratio(run, FP16), step_ratio(run, FP16_COMPILED)
    if plain is None or made is None or not plain.candidate_value or not made.candidate_value:
        return None
    theirs, mine = plain.interval, made.interval
    return CompiledStep(
        step_ms=made.candidate_value,
        plain_ms=plain.candidate_value,
        over_fp32=made.difference or 1.0,
        faster=theirs is not None and mine is not None and mine[1] < theirs[0],
        slower=theirs is not None and mine is not None and mine[0] > theirs[1],
    )


def compiled_words(step: CompiledStep) -> str:
    """What torch.compile gives FP16, as it was timed."""
    if step.faster:
        told = "makes FP16's step faster"
    else:
        told = "makes FP16's step longer" if step.slower else "is not told apart from plain FP16"
    return (
        f"torch.compile {told}: {step.step_ms:.4g} ms, plain FP16 {step.plain_ms:.4g}, x{step.over_fp32:.2f} of IEEE "
        "FP32's"
    )
