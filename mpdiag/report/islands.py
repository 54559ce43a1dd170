"""The plan of FP32 islands in words, for the screen and the page."""

from __future__ import annotations

from mpdiag.diagnosis import Diagnosis
from mpdiag.report.accuracy_words import verdict_in_words

ARM = "fp16-plan"


def island_sentences(diagnosis: Diagnosis) -> list[str]:
    """What the search found, how it trained and what it costs; nothing where no search was called for."""
    plan = diagnosis.advice.plan if diagnosis.advice else None
    if plan is None:
        return []
    tried = f"tried on the first batch: {plan.iterations} FP16 iteration{'' if plan.iterations == 1 else 's'}"
    tried += f"{', emulated' if plan.emulated else ''}, {plan.seconds:.1f} s"
    if not plan.enough:
        return [f"no set of modules in FP32 was found that cures this ({tried}): {plan.reason}"]
    count = len(plan.keep_fp32)
    least = f"; {plan.reason or 'fewer may do'}"
    if plan.minimal:
        least = "; none of them can be left out" if count > 1 else ""
    told = [f"{count} module{'' if count == 1 else 's'} in FP32 cure{'s' if count == 1 else ''} it{least} ({tried})"]
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


def _speed(
    ratio: float | None, within: tuple[float, float] | None, reference: str | None, reason: str | None
) -> str:  # fmt: skip
    if ratio is None:
        return f"speed lost by it: {reason}"
    lost = f"{(ratio - 1) * 100:.1f} % longer" if ratio >= 1 else f"{(1 - ratio) * 100:.1f} % shorter"
    told = f"speed lost by it: a step takes {lost} than in FP16 without it ({reference}), x{ratio:.3f}"
    told += f" (95 % within {within[0]:.3f}..{within[1]:.3f})" if within else ""
    return f"{told}; undecided: {reason}" if reason else told
