"""How long a training step takes, arm by arm, measured in turns."""

from __future__ import annotations

from dataclasses import dataclass

from mpdiag.costs.gpu import GpuSharing


@dataclass(frozen=True)
class ArmTime:
    """The step times of one arm. block_medians_ms: one a round, None for a round whose block was lost.

    step_time_ms: geometric mean over the rounds of each block's median step, so that two arms' quotient is the ratio
    that is judged (a lost block aside); iqr_ms: quartiles of all timed steps. wall_ms: the wall clock's mean over whole
    blocks, more than the step time where the host stalls now and then. skipped_blocks: blocks not counted because the
    GradScaler skipped a step in them (a skipped step is shorter). clocks_mhz, temperatures_c: lowest and highest seen
    in its blocks, None where NVML does not tell. throttled: whether heat or a power cap held the clock down then, None
    where that is not told; limited_by names it. What else is None has its reason.
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
    clocks_mhz: tuple[int, int] | None = None
    temperatures_c: tuple[int, int] | None = None
    throttled: bool | None = None
    limited_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timing:
    """All arms, timed in blocks that take turns: in each round every arm has one block, in a balanced order.

    control: a second block of the baseline in each round; what separates it from the first is the machine's noise.
    samples: the batch size that all arms had, where batches differ the mean of those that take turns, whose sizes
    batch_sizes tells then (empty where all are of one size). resident: all arms were in memory at once, else each block
    began with a fresh model, warmed up as long. notes: what was done otherwise than asked. order: the arms of each
    round as they came, "again" for the control. sharing: who else used the GPU before the first round, or after the
    last if then somebody worked. others: the most compute processes of others that NVML listed at the end of a round,
    None where it lists none of them.
    """

    arms: tuple[ArmTime, ...]
    control: ArmTime
    samples: int | float | None
    rounds: int
    resident: bool
    seconds: float
    notes: tuple[str, ...] = ()
    order: tuple[tuple[str, ...], ...] = ()
    sharing: GpuSharing | None = None
    others: int | None = None
    batch_sizes: tuple[int, ...] = ()

    @property
    def first_samples(self) -> int | float | None:
        """The size of the job's first batch, as it was timed."""
        return self.batch_sizes[0] if self.batch_sizes else self.samples

    @property
    def shared(self) -> str | None:
        """Why the times are not this run's alone; None where nobody was seen to work beside it."""
        if self.sharing is None:
            return None
        if self.sharing.busy:
            return self.sharing.reason
        came = (self.others or 0) - (self.sharing.processes or 0)
        if self.sharing.processes is None or came <= 0:
            return None
        return f"{came} other process{'' if came == 1 else 'es'} came to this GPU while steps were timed"
