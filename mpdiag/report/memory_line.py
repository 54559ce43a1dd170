"""Memory and largest batches in one line for the terminal. Plain text."""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.costs.largest_batch import LargestBatch
from mpdiag.costs.memory import MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.report.html_numbers import size
from mpdiag.report.memory_reasons import BASELINE, HALVED, baseline_of, half_words_of, in_sixteen_bits, joined, lies

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
    if words is None or words.halved or ratio <= HALVED:
        return text
    first = [each.brief for each in words.reasons if each.excess_bytes > 0][:TOLD_FIRST]
    return f"{text}; half is not reached because {joined(first)}" if first else text


def _batch_words(found: Sequence[LargestBatch]) -> str | None:
    baseline = next((each for each in found if each.arm == BASELINE and each.batch), None)
    others = [each for each in found if each is not baseline and each.batch]
    arm = next((each for each in others if each.arm == "fp16"), others[0] if others else None)
    if arm is None:
        return f"largest batch {_least(baseline)} ({baseline.arm})" if baseline else None
    against = f" against {_least(baseline)}" if baseline else ""
    return f"largest batch {_least(arm)} ({arm.arm}){against}"


def _least(found: LargestBatch) -> str:
    return f"{'at least ' if found.at_least else ''}{found.batch}"
