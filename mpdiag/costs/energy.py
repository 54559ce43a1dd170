"""The energy an arm takes for one sample: an estimate by the energy counter of NVML."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnergyUse:
    """Joules a sample of one arm, over windows of steady steps that took turns with the other arms'.

    joules_per_sample: mean over the windows, of the whole GPU; where batches differ, which the note says, a step counts
    as their mean of samples. interval: its 95 % confidence interval from three windows on, else None.
    joules_per_sample_above_idle: less what the GPU draws with nothing running, None for the above_idle_reason;
    idle_share: the part of the energy that is (0..1). by_window: each window's joules a sample, one a round, None for a
    window that was lost. seconds: of all windows together. step_time_ms: the mean step in them; the note says where it
    is not the timed one. clocks_mhz, temperatures_c: lowest and highest seen. throttled: whether
    heat or a power cap held the clock down, None where NVML does not tell; limited_by names it. reason: why there is no
    figure.
    """

    arm: str
    joules_per_sample: float | None
    interval: tuple[float, float] | None
    joules_per_sample_above_idle: float | None
    windows: int
    seconds: float
    idle_watts: float | None
    reason: str | None = None
    idle_share: float | None = None
    watts: float | None = None
    samples: int = 0
    by_window: tuple[float | None, ...] = ()
    clocks_mhz: tuple[int, int] | None = None
    temperatures_c: tuple[int, int] | None = None
    throttled: bool | None = None
    limited_by: tuple[str, ...] = ()
    note: str | None = None
    above_idle_reason: str | None = None
    step_time_ms: float | None = None
