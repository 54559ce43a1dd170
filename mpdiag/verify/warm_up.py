"""Which arms there is time to build and warm up before they are timed in turns."""

from __future__ import annotations

from mpdiag.arm_names import BF16, FP16_CHANNELS_LAST, FP16_COMPILED, FP16_PLAN, FP16_PURE, FP32_CONFIGURED, TF32
from mpdiag.measure.fleet import PACE_STEPS
from mpdiag.settings import PREDICTION_SHARE, TRAINING_SHARE, WARMUP_STEPS
from mpdiag.training.precision import Precision
from mpdiag.verify.deadline import short
from mpdiag.verify.plan import Pace

COMPILE_SECONDS = 90.0  # what torch.compile may take; it took 20 to 60 s for ResNet-50 and GPT-2 on an H100
WARM_UP_SHARE = 0.4  # of what is left, at most: a warm arm that is not timed tells nothing
LEFT_OUT_FIRST = (  # least needed for the answer first
    FP16_PURE, FP32_CONFIGURED, FP16_CHANNELS_LAST, TF32, BF16, FP16_PLAN,
)  # fmt: skip


def warm_up_seconds(arms: dict[str, Precision], pace: Pace | None) -> float:
    """To build these arms and step each until it is steady, without what torch.compile takes; 0 without a pace."""
    if pace is None:
        return 0.0
    steps = WARMUP_STEPS + PACE_STEPS
    once = pace.build_seconds + pace.first_step_seconds
    return sum(once + steps * pace.of(name, precision) for name, precision in arms.items())


def that_fit(
    arms: dict[str, Precision], pace: Pace | None, left_seconds: float, timing_share: float
) -> tuple[dict[str, Precision], list[str]]:
    """The arms to time within what is left, and one sentence for each that is not; FP32 and FP16 always stay.

    pace: None where nothing was rehearsed; then warming up is free. timing_share: of what is left, for the timing.
    """
    kept, cut = dict(arms), []
    if FP16_COMPILED in kept and left_seconds < COMPILE_SECONDS / timing_share:
        needed = COMPILE_SECONDS / timing_share / ((1 - TRAINING_SHARE) * (1 - PREDICTION_SHARE))
        why = f"torch.compile takes up to {COMPILE_SECONDS:.0f} s; --time-budget {needed:.0f} lets it in"
        cut.append(f"arm {FP16_COMPILED}: not timed, {why}")
        del kept[FP16_COMPILED]
    for name in LEFT_OUT_FIRST:
        needed = warm_up_seconds(kept, pace)
        if needed <= WARM_UP_SHARE * left_seconds:
            break
        if kept.pop(name, None) is not None:
            had = f"the time budget had {short(max(left_seconds, 0.0))} left"
            cut.append(f"arm {name}: not timed, warming up all arms takes about {short(needed)}, {had}")
    return kept, cut
