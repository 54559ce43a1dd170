"""What channels_last gives an arm, from the arm that was timed with it: it goes before what a trace would guess."""

from __future__ import annotations

from dataclasses import replace

from mpdiag.arm_names import FP16, FP16_CHANNELS_LAST
from mpdiag.costs.kernels import ArmKernels, WhyNot
from mpdiag.costs.record import Costs
from mpdiag.diagnosis import Comparison
from mpdiag.measure.why_not import BY_ARM, LAYOUT
from mpdiag.verify.cost_ratios import compare_step_times

OF_THE_STEP = "not told for one layer: the arm {arm} was timed as a whole"


def told_by_its_arm(kernels: ArmKernels, costs: Costs) -> ArmKernels:
    """The record with the gains of channels_last as they were timed; as it is where no such arm was.

    Only FP16 has one. A gain is one only where the ratio of step times is judged to be better, as any arm's is.
    """
    if kernels.arm != FP16:
        return kernels
    timed = compare_step_times(costs, FP16, FP16_CHANNELS_LAST)
    if timed.interval is None:
        return kernels
    gain, source, remedy = _told(timed, timed.interval)
    of_step = OF_THE_STEP.format(arm=FP16_CHANNELS_LAST)

    def mended(why: WhyNot, gain_ms: float | None, gain_from: str) -> WhyNot:
        if why.code != LAYOUT:
            return why
        return replace(why, gain_ms=gain_ms, gain_from=gain_from, remedy=remedy or why.remedy)

    layers = kernels.layers and tuple(
        replace(layer, why_not=tuple(mended(why, None, of_step) for why in layer.why_not)) for layer in kernels.layers
    )
    return replace(kernels, layers=layers, findings=tuple(mended(why, gain, source) for why in kernels.findings))


def _told(timed: Comparison, interval: tuple[float, float]) -> tuple[float | None, str, str | None]:
    """(gain in ms of a step, where it is from or why there is none, another remedy)."""
    read = f"the arm {timed.candidate} takes x{timed.difference:.3f} of this arm's step"
    read += f" ({interval[0]:.3f} to {interval[1]:.3f})"
    if timed.verdict == "better" and timed.baseline_value is not None and timed.candidate_value is not None:
        return timed.baseline_value - timed.candidate_value, BY_ARM, None
    if timed.verdict == "worse":
        return None, f"none: {read}", "leave the layout as it is: channels_last was slower here"
    if timed.verdict == "equivalent":
        return None, f"not shown: {read}", None
    return None, f"undecided: {read}, and {timed.reason}", None
