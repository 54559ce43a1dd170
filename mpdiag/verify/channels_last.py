"""What channels_last gives an arm, from the arm that was timed with it: it goes before what a trace would guess."""

from __future__ import annotations

from dataclasses import replace

from mpdiag.costs.kernels import ArmKernels, WhyNot
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.measure.why_not import BY_ARM, LAYOUT
from mpdiag.verify.arms import FP16, FP16_CHANNELS_LAST
from mpdiag.verify.block_ratio import block_ratios, geometric_mean, judge, noise_band, noise_of, ratio_interval

OF_THE_STEP = "not told for one layer: the arm {arm} was timed as a whole"


def told_by_its_arm(kernels: ArmKernels, timing: Timing | None) -> ArmKernels:
    """The record with the gains of channels_last as they were timed; as it is where no such arm was.

    Only FP16 has one. A gain is one only where the ratio of step times is judged to be better, as any arm's is.
    """
    arms = {each.arm: each for each in timing.arms} if timing else {}
    plain, other = arms.get(FP16), arms.get(FP16_CHANNELS_LAST)
    if kernels.arm != FP16 or timing is None or plain is None or other is None or not plain.step_time_ms:
        return kernels
    told = _told(plain, other, timing)
    if told is None:
        return kernels
    gain, source, remedy = told
    of_step = OF_THE_STEP.format(arm=FP16_CHANNELS_LAST)

    def mended(why: WhyNot, gain_ms: float | None, gain_from: str) -> WhyNot:
        if why.code != LAYOUT:
            return why
        return replace(why, gain_ms=gain_ms, gain_from=gain_from, remedy=remedy or why.remedy)

    layers = kernels.layers and tuple(
        replace(layer, why_not=tuple(mended(why, None, of_step) for why in layer.why_not)) for layer in kernels.layers
    )
    return replace(kernels, layers=layers, findings=tuple(mended(why, gain, source) for why in kernels.findings))


def _told(plain: ArmTime, other: ArmTime, timing: Timing) -> tuple[float | None, str, str | None] | None:
    """(gain in ms of a step, where it is from or why there is none, another remedy); None where nothing was timed."""
    ratios = block_ratios(other, plain)
    interval = ratio_interval(ratios)
    if interval is None or plain.step_time_ms is None:
        return None
    ratio, (low, high) = geometric_mean(ratios), interval
    read = f"the arm {other.arm} takes x{ratio:.3f} of this arm's step ({low:.3f} to {high:.3f})"
    noise = noise_of(timing)
    if noise is not None:
        return None, f"undecided: {read}, and {noise}", None
    verdict = judge(interval, noise_band(timing) or 0.0)
    if verdict == "better":
        return (1 - ratio) * plain.step_time_ms, BY_ARM, None
    if verdict == "worse":
        return None, f"none: {read}", "leave the layout as it is: channels_last was slower here"
    return None, f"not shown: {read}", None
