"""The loss scale to train with, its feasible window, and what is lost without it and with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScalePoint:
    """One point of the loss-scale curve: pooled shares of the FP16 gradients at 2^log2_scale."""

    log2_scale: int
    underflow: float
    energy_lost: float
    overflow: float


@dataclass(frozen=True)
class EnergyLost:
    """The tensor, as "name (kind)", that loses the largest share of its squared norm, where from first_step on."""

    tensor: str
    share: float
    first_step: int


@dataclass(frozen=True)
class LossScaleAdvice:
    """The recommended loss scale and its whole feasible window [2^lower_log2, 2^upper_log2].

    limited_by names the tensors that bind each end. underflow_before and _after are the shares of all elements lost at
    scale 1 and at the recommended scale, energy_lost of the squared norm of all; most_lost: by the tensor and stretch
    of training that loses most. lower > upper: no scale serves all, log2_scale is None. A skipped step multiplies the
    scale by backoff_factor, growth_interval steps without one double it (None: it never grows).
    """

    log2_scale: int | None
    mode: str
    lower_log2: int | None
    upper_log2: int | None
    limited_by: dict[str, tuple[str, ...]]
    underflow_before: float | None
    underflow_after: float | None
    energy_lost_before: float | None
    energy_lost_after: float | None
    snippet: str | None
    reason: str
    growth_interval: int | None = None
    curve: tuple[ScalePoint, ...] = ()
    backoff_factor: float | None = None
    most_lost_before: EnergyLost | None = None
    most_lost_after: EnergyLost | None = None
