"""Memory and largest batches in one line for the terminal. Plain text."""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.arm_names import BASELINE
from mpdiag.costs.largest_batch import LargestBatch
from mpdiag.costs.memory import MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.report.html_numbers import size
from mpdiag.report.memory_reasons import (
    BELOW_HALF,
    HALVED,
    baseline_of,
    half_words_of,
    in_sixteen_bits,
    joined,
    lies,
)

TOLD_FIRST = 2  # reasons; the page has all


def memory_words(costs: Costs) -> str | None:
    """One line for the terminal: the 16-bit arm's peak against FP32's, where it lies, why it is not half, the largest
    batches; None where neither was measured.
    """
    told = [part for part in (_peak_words(costs.memory), _batch_words(costs.largest_batch)) if part]
    return "; ".join(told) or None


def _peak_words(uses: Sequence[MemoryUse]) -> str | None:
    baseline = baseline_of(uses)
    arms = [use for use in uses if use is not baseline and in_sixteen_bits(use) and use.peak_allocated_bytes]
    arm = next((use for use in arms if use.arm == "fp16"), arms[0] if arms else None)
    if baseline is None or not baseline.peak_allocated_bytes or arm is None or not arm.peak_allocated_bytes:
        return None
    ratio = arm.peak_allocated_bytes / baseline.peak_allocated_bytes
    text = f"{arm.arm} peaks at {size(arm.peak_allocated_bytes)} against {size(baseline.peak_allocated_bytes)}"
    text += f" (x{ratio:.2f})" + (f" {where}" if (where := lies(arm)) else "")
    words = half_words_of(baseline, arm)
    if words is not None and words.below and ratio < BELOW_HALF:
        return f"{text}; {words.below}"
    if words is None or words.halved or ratio <= HALVED:
        return text
    first = [each.brief for each in words.reasons if each.excess_bytes > 0][:TOLD_FIRST]
    return f"{text}; half is not reached because {joined(first)}" if first else text


def _batch_words(found: Sequence[LargestBatch]) -> str | None:
    named = [each.arm for each in found if each.batch and each.arm != BASELINE]
    baseline, arm = batches_of(found, "fp16" if "fp16" in named else named[0] if named else "")
    if arm is None:
        return f"largest batch {_least(baseline)} ({baseline.arm})" if baseline else None
    against = f" against {_least(baseline)}" if baseline else ""
    rates = rates_words(baseline, arm)
    return f"largest batch {_least(arm)} ({arm.arm}){against}" + (f", there {rates}" if rates else "")


def batches_of(found: Sequence[LargestBatch], arm: str) -> tuple[LargestBatch | None, LargestBatch | None]:
    """FP32's largest batch and an arm's; None for each that was not found."""
    known = {each.arm: each for each in found if each.batch}
    return known.get(BASELINE), known.get(arm)


def sizes_words(baseline: LargestBatch | None, arm: LargestBatch | None) -> str | None:
    """How large an arm's batch may be beside FP32's; None where it is not larger, or one is not known."""
    if baseline is None or arm is None or (arm.batch or 0) <= (baseline.batch or 0) or baseline.at_least:
        return None  # of a lower bound of FP32's nothing follows
    return f"a largest batch of {_least(arm)} against {_least(baseline)}"


def rates_words(baseline: LargestBatch | None, arm: LargestBatch | None) -> str | None:
    """How many samples a second an arm trains at its largest batch, and FP32 at its own; None where one was not timed.

    The step at the job's own batch says nothing of it: where the host is what takes the time, an arm may take longer
    there and train twice as many samples a second where the GPU is full.
    """
    if baseline is None or arm is None or not baseline.samples_per_second or not arm.samples_per_second:
        return None
    mine, theirs = (f"{float(f'{each.samples_per_second:.4g}'):,.10g}" for each in (arm, baseline))
    ratio = arm.samples_per_second / baseline.samples_per_second
    return f"x{ratio:.2f} FP32's samples a second ({mine} against {theirs})"


def _least(found: LargestBatch) -> str:
    return f"{'at least ' if found.at_least else ''}{found.batch}"
