"""The plan of FP32 islands in words, for the screen and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdiag.diagnosis import Diagnosis
from mpdiag.report.accuracy_words import verdict_in_words
from mpdiag.report.html_numbers import share

if TYPE_CHECKING:
    from mpdiag.plan import IslandPlan

ARM = "fp16-plan"
NAMED = 4  # modules in a sentence; the plan has all


def island_sentences(diagnosis: Diagnosis) -> list[str]:
    """What the search found, how it trained and what it costs; nothing where no search was called for."""
    plan = diagnosis.advice.plan if diagnosis.advice else None
    if plan is None:
        return []
    tried = f"tried on the first batch: {plan.iterations} FP16 iteration{'' if plan.iterations == 1 else 's'}"
    tried += f"{', emulated' if plan.emulated else ''}, {plan.seconds:.1f} s"
    if not plan.enough and plan.half_share == 0:
        more = f" and {len(plan.spoken) - NAMED} more" if len(plan.spoken) > NAMED else ""
        return [f"no plan: with {', '.join(plan.spoken[:NAMED])}{more} in FP32 {plan.reason} ({tried})"]
    if not plan.enough:
        return [f"no set of modules in FP32 was found that cures this ({tried}): {plan.reason}"]
    count = len(plan.keep_fp32)
    least = f"; {plan.reason or 'fewer may do'}"
    if plan.minimal:
        least = "; none of them can be left out" if count > 1 else ""
    told = [f"{count} module{'' if count == 1 else 's'} in FP32 cure{'s' if count == 1 else ''} it{least} ({tried})"]
    told.append(_left(plan))
    if plan.near_limit:
        told.append(f"within an octave of overflow, and next if activations grow: {', '.join(plan.near_limit)}")
    run = diagnosis.verification
    told += [
        f"trained with {'it' if count == 1 else 'them'} in FP32, {c.quantity.replace('_', ' ')}: {verdict_in_words(c)}"
        + (f", {c.reason}" if c.reason else "")
        for c in (run.comparisons if run else ())
        if c.candidate == ARM and not c.is_ratio
    ]
    speed = _speed(plan.step_time_ratio, plan.step_time_interval, plan.step_time_reference, plan.step_time_reason)
    return [*told, speed]


def _left(plan: IslandPlan) -> str:
    """What of FP16 the plan leaves."""
    if plan.half_share is None:
        return f"share of the products' FLOPs left in FP16: {plan.half_share_reason}"
    mostly = ", so most of the work stays in FP32" if plan.mostly_fp32 else ""
    return f"{share(plan.half_share)} of the FLOPs of matrix products and convolutions are left in FP16{mostly}"


def _speed(
    ratio: float | None, within: tuple[float, float] | None, reference: str | None, reason: str | None
) -> str:  # fmt: skip
    if ratio is None:
        return f"speed lost by it: {reason}"
    lost = f"{(ratio - 1) * 100:.1f} % longer" if ratio >= 1 else f"{(1 - ratio) * 100:.1f} % shorter"
    told = f"speed lost by it: a step takes {lost} than in FP16 without it ({reference}), x{ratio:.3f}"
    told += f" (95 % within {within[0]:.3f}..{within[1]:.3f})" if within else ""
    return f"{told}; undecided: {reason}" if reason else told
