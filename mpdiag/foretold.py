"""What the FP32 run foretold about FP16 and what FP16 then did, tensor by tensor; saved as verification.prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorForecast:
    """One tensor in one training step, in FP32 and then in FP16 from the same weights and batch; kind as in its table.

    Shares (0..1) of its finite non-zero elements in FP32. predicted: by the exponent counts alone, each tensor for
    itself. cascade: by an FP32 step whose values and gradients were rounded to FP16 where FP16 would have them so, and
    what has become zero stays zero upstream (None for what has no gradient, or where that step failed). observed:
    zeros, and infinities or NaNs, that FP16 has beyond those of FP32; predicted_overflow is with the cascade too.
    log2_scale: of the loss scale, 0 without one. trained_steps: how many FP32 steps the weights are from
    initialisation. noise: its gradient is mathematically zero, or a part of it. energy_lost: of its squared norm, by
    the counts alone (None in older files).
    """

    name: str
    kind: str
    trained_steps: int
    log2_scale: int
    elements: int
    predicted_underflow: float
    cascade_underflow: float | None
    observed_underflow: float
    predicted_overflow: float
    observed_overflow: float
    noise: bool = False
    energy_lost: float | None = None

    @property
    def comparable(self) -> bool:
        """Whether its underflow can be compared: an infinity or NaN says nothing of what it replaced."""
        return not self.noise and not self.observed_overflow > 0

    @property
    def error_points(self) -> float:
        """|predicted - observed| underflow in percentage points, with the cascade where there is one."""
        predicted = self.predicted_underflow if self.cascade_underflow is None else self.cascade_underflow
        return 100 * abs(predicted - self.observed_underflow)

    @property
    def alone_error_points(self) -> float:
        """The same for the counts alone."""
        return 100 * abs(self.predicted_underflow - self.observed_underflow)


@dataclass(frozen=True)
class Prediction:
    """The forecasts of all tensors, and how well they held over those that are not noise.

    Errors are in percentage points of underflow: the median and the 95th percentile over tensors, with the cascade and
    by the counts alone. Not among them: noise_tensors, and overflowed_tensors, which FP16 broke. overflow_missed:
    tensors that overflowed in a step in which no overflow was foretold. emulated: FP16 was emulated. Errors are None
    where there was no tensor to compare. cascade_reason: why some forecasts are by the counts alone, None if none is.
    """

    tensors: tuple[TensorForecast, ...]
    emulated: bool
    median_error_points: float | None = None
    p95_error_points: float | None = None
    alone_median_error_points: float | None = None
    alone_p95_error_points: float | None = None
    noise_tensors: int = 0
    overflowed_tensors: int = 0
    overflow_missed: tuple[str, ...] = ()
    cascade_reason: str | None = None


@dataclass(frozen=True)
class FirstOverflow:
    """Where 16 bits broke in a training run, looked at once its loss was not finite.

    step: the first such, from 1. module: the first whose output was not finite then and is in FP32, from the same
    weights and batch, where it reaches abs_max_fp32; None where it could not be told, for `reason`.
    """

    step: int
    module: str | None
    abs_max_fp32: float | None
    reason: str | None


def summarized(tensors: Sequence[TensorForecast], emulated: bool) -> Prediction:
    """The forecasts with their errors over tensors that are not noise and did not overflow.

    Where one tensor of a step was foretold to overflow, the others' overflows are its consequences.
    """
    signal = [t for t in tensors if not t.noise]
    whole = [t for t in signal if t.comparable]
    errors = sorted(t.error_points for t in whole)
    alone = sorted(t.alone_error_points for t in whole)
    foretold = {t.trained_steps for t in tensors if t.predicted_overflow > 0}
    missed = [f"{t.name} ({t.kind})" for t in signal if t.observed_overflow > 0 and t.trained_steps not in foretold]
    return Prediction(
        tuple(tensors),
        emulated,
        quantile(errors, 0.5),
        quantile(errors, 0.95),
        quantile(alone, 0.5),
        quantile(alone, 0.95),
        len(tensors) - len(signal),
        len(signal) - len(whole),
        tuple(dict.fromkeys(missed)),
    )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of ordered values with at least this share at or below it; None of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
