"""A step time measured a second time: the windows of energy hold seconds of steps, the timed blocks a few each."""

from __future__ import annotations

from mpdiag.arm_names import BASELINE
from mpdiag.diagnosis import Comparison, Verification


def second_reading(run: Verification, c: Comparison) -> str | None:
    """That the same run's energy windows read another ratio of step times to IEEE FP32 than the interval allows.

    c: the comparison of step times. None where the ratio of the windows lies in its interval, or there is none of
    either. The interval tells how blocks scatter within the timing; a host that is quicker or slower for seconds on
    end, as between the timing and the windows, is not in it. Where batches differ in size nothing is said: blocks then
    tell the median step, windows the mean.
    """
    uses = {use.arm: use for use in run.costs.energy if use.step_time_ms}
    mine, theirs = uses.get(c.candidate), uses.get(BASELINE)
    if c.baseline != BASELINE or c.interval is None or mine is None or theirs is None:
        return None
    if run.costs.timing is not None and run.costs.timing.batch_sizes:
        return None
    ratio = (mine.step_time_ms or 0.0) / (theirs.step_time_ms or 1.0)
    low, high = c.interval
    if low <= ratio <= high:
        return None
    seconds = min(mine.seconds, theirs.seconds)
    return (
        f"measured again over {seconds:.0f} s of steps, for the energy, it takes x{ratio:.3f} of IEEE FP32's time, "
        f"outside the interval x{low:.3f} to x{high:.3f}, which is too narrow for such steps"
    )
