"""How long a training step takes, arm by arm, measured in turns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ArmTime:
    """The step times of one arm. block_medians_ms: one a round, None for a round whose block was lost.

    step_time_ms: median over all timed steps, with its quartiles; wall_ms: the wall clock's mean over whole blocks,
    more than the step time where the host stalls at a block's end. skipped_blocks: blocks not counted because the
    GradScaler skipped a step in them (a skipped step is shorter). What is None has its reason.
    """

    arm: str
    precision: str
    step_time_ms: float | None
    iqr_ms: tuple[float, float] | None
    wall_ms: float | None
    block_medians_ms: tuple[float | None, ...] = ()
    steps: int = 0
    skipped_blocks: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Timing:
    """All arms, timed in blocks that take turns: in each round every arm has one block, in rotating order.

    control: a second block of the baseline in each round; what separates it from the first is the machine's noise.
    samples: the batch size that all arms had. resident: all arms were in memory at once, else each block began with a
    fresh model. notes: what was done otherwise than asked.
    """

    arms: tuple[ArmTime, ...]
    control: ArmTime
    samples: int | None
    rounds: int
    resident: bool
    seconds: float
    notes: tuple[str, ...] = ()
