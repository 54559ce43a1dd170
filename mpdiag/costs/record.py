"""Everything that was measured of what the arms cost; saved as verification.costs."""

from __future__ import annotations

from dataclasses import dataclass

from mpdiag.costs.energy import EnergyUse
from mpdiag.costs.gpu import GpuSharing
from mpdiag.costs.kernels import ArmKernels, Flops
from mpdiag.costs.largest_batch import LargestBatch
from mpdiag.costs.memory import MemoryUse
from mpdiag.costs.tensor_cores import Calibration, Ceilings, CounterEvidence, GpmEvidence
from mpdiag.costs.timing import Timing


@dataclass(frozen=True)
class Costs:
    """One entry an arm in each tuple, those that were measured; where a part is missing its reason says why.

    kernels: the traced arms with their layers. flops: of one step of the model, the same for every arm. shared: why no
    figure of time, energy or tensor cores is this run's alone, None on a GPU of its own. seconds: for all of it but the
    search of the largest batch, which took largest_batch_seconds.
    """

    timing: Timing | None = None
    timing_reason: str | None = None
    memory: tuple[MemoryUse, ...] = ()
    memory_reason: str | None = None
    energy: tuple[EnergyUse, ...] = ()
    energy_reason: str | None = None
    gpm: tuple[GpmEvidence, ...] = ()
    gpm_reason: str | None = None
    kernels: tuple[ArmKernels, ...] = ()
    kernels_reason: str | None = None
    flops: Flops | None = None
    flops_reason: str | None = None
    counters: tuple[CounterEvidence, ...] = ()
    counters_reason: str | None = None
    largest_batch: tuple[LargestBatch, ...] = ()
    largest_batch_reason: str | None = None
    calibration: Calibration | None = None
    ceilings: Ceilings | None = None
    ceilings_reason: str | None = None
    sharing: GpuSharing | None = None
    seconds: float = 0.0
    largest_batch_seconds: float = 0.0

    @property
    def shared(self) -> str | None:
        """Why ratios of time and energy are not to be judged: others used the GPU, then or while steps were timed."""
        if self.timing is not None and self.timing.shared is not None:
            return self.timing.shared
        return self.sharing.reason if self.sharing is not None and self.sharing.busy else None

    @classmethod
    def absent(cls, reason: str) -> Costs:
        """Nothing was measured, all for one reason."""
        return cls(
            timing_reason=reason, memory_reason=reason, energy_reason=reason, gpm_reason=reason, kernels_reason=reason,
            counters_reason=reason, largest_batch_reason=reason, ceilings_reason=reason, flops_reason=reason,
        )  # fmt: skip


NOT_MEASURED = Costs.absent("not measured")
