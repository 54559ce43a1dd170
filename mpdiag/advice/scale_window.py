"""The feasible window of loss scales, from exponent tables alone.

2^k with k in [lower, upper]. The upper end keeps every gradient that is FP16 under autocast, activation and weight
gradients alike, below 65504; the lower end keeps what rounds to zero negligible. Rule and thresholds: the LogMax tail
of OpenSeq2Seq (Kuchaiev et al. 2018, 3.09 standard deviations: P(overflow) < 0.001) applied to activation gradients
too (Micikevicius et al., arXiv 1710.03740, section 3.2, has the two ends).

A window is of one stretch of the training. Stretches far apart each have their own: the spread of a maximum over all
of them would be the drift between them, not its noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mpdiag.diagnosis import Capture, TensorKind, TensorTable
from mpdiag.formats import FP16
from mpdiag.histogram import ExponentHistogram

POOLED_LOSS = 1e-3  # share of all gradient elements that may become zero: 0.1 %, a fiftieth of the paper's figure 2b
TENSOR_LOSS = 0.05  # share of one tensor's: the 5 % of the paper's figure 2b, the least it calls relevant
NEGLIGIBLE_ENERGY = 2.0**-22  # squared-norm share of FP16's own rounding error (relative 2^-11 at most, squared)
TAIL_SIGMAS = 3.09  # one-sided 99.9 % of a normal distribution
MANY_STEPS = 100  # from here on one octave of headroom above the largest gradient seen, before two
CAP = 24  # beyond 2^24 FP32's own subnormals would count; OpenSeq2Seq stops there too
MAX_NAMED = 3

_GRADIENTS = (TensorKind.ACTIVATION_GRADIENT, TensorKind.WEIGHT_GRADIENT)


@dataclass(frozen=True)
class Window:
    """2^lower..2^upper, and the tensors that bind each end, as "name (kind)". by_count: the lower end that the counts
    alone ask for, where it is beyond the upper end yet what 2^upper loses is below FP16's own rounding error."""

    lower: int
    upper: int
    binds_lower: tuple[str, ...]
    binds_upper: tuple[str, ...]
    by_count: int | None = None

    @property
    def empty(self) -> bool:
        """Whether no scale lies in it."""
        return self.lower > self.upper

    @property
    def octaves(self) -> int:
        """Its width."""
        return self.upper - self.lower


def fp16_gradients(capture: Capture) -> list[TensorTable]:
    """The gradients a loss scale acts on: FP16 under autocast, not rounding noise, not all zero.

    Where the types under autocast are unknown (the FP16 iteration failed), all gradients.
    """
    known = any(t.amp_dtype is not None for t in capture.tables)
    return [
        t
        for t in capture.of_kind(*_GRADIENTS)
        if t.abs_max and not t.noise_level and (t.amp_dtype == "float16" or not known)
    ]


def window_of(capture: Capture) -> Window | None:
    """The window of one stretch of the training; None where it has no gradient that a scale acts on."""
    tables = fp16_gradients(capture)
    if not tables:
        return None
    upper, binds_upper = _upper(tables, capture)
    lower, binds_lower = _lower(tables)
    if lower > upper and all(t.signal.energy_lost(FP16, upper) <= NEGLIGIBLE_ENERGY for t in tables):
        return Window(upper, upper, binds_lower, binds_upper, by_count=lower)
    return Window(lower, upper, binds_lower, binds_upper)


def common(windows: Sequence[Window]) -> Window:
    """Where all of them overlap: empty where they do not."""
    low, high = max(windows, key=lambda w: w.lower), min(windows, key=lambda w: w.upper)
    return Window(low.lower, high.upper, low.binds_lower, high.binds_upper, low.by_count)


def called(table: TensorTable) -> str:
    """How a table is named where tensors are listed."""
    return f"{table.name} ({table.kind})"


def _upper(tables: Sequence[TensorTable], capture: Capture) -> tuple[int, tuple[str, ...]]:
    """The largest k, and the tensors that would be first to overflow beyond it."""
    margin = 1 if capture.steps >= MANY_STEPS else 2
    ceiling = math.log2(FP16.max)
    bounds = {
        called(t): min(
            math.floor(ceiling - math.log2(max(t.abs_max_by_step))) - margin,
            math.floor(ceiling - _tail(t.abs_max_by_step)),
        )
        for t in tables
    }
    steps = max(len(t.abs_max_by_step) for t in tables)
    together = [max(t.abs_max_by_step[i] for t in tables if i < len(t.abs_max_by_step)) for i in range(steps)]
    k = min(*bounds.values(), math.floor(ceiling - _tail(together)), CAP)
    largest_loss = max((abs(v) for v in capture.losses if math.isfinite(v)), default=0.0)
    if capture.loss_amp_dtype == "float16" and largest_loss:
        bounds["the loss itself"] = math.floor(ceiling - math.log2(largest_loss)) - margin
        k = min(k, bounds["the loss itself"])
    first = sorted(bounds, key=lambda name: bounds[name])[:MAX_NAMED]
    return k, tuple(name for name in first if bounds[name] <= k + 1)


def _tail(maxima: Sequence[float]) -> float:
    """log2 of a maximum that one step in a thousand exceeds, if the maxima are log-normal."""
    logs = [math.log2(m) for m in maxima if m > 0]
    mean = sum(logs) / len(logs)
    variance = sum((x - mean) ** 2 for x in logs) / len(logs)
    return mean + TAIL_SIGMAS * math.sqrt(variance)


def _lower(tables: Sequence[TensorTable]) -> tuple[int, tuple[str, ...]]:
    """The smallest k that loses little enough, and the tensors that still lose too much one octave below."""
    pooled = sum((t.signal for t in tables), ExponentHistogram())

    def enough(k: int) -> bool:
        return pooled.underflows(FP16, k) <= POOLED_LOSS * pooled.finite_nonzero and all(
            t.signal.underflows(FP16, k) <= TENSOR_LOSS * t.signal.finite_nonzero for t in tables
        )

    # FP32 spans 2^-149..2^127, so the answer lies between these
    k = next(k for k in range(-152, 153) if enough(k))
    worst = sorted(tables, key=lambda t: t.signal.usage(FP16, k - 1).underflow, reverse=True)
    binding = [t for t in worst if t.signal.usage(FP16, k - 1).underflow > 0][:MAX_NAMED]
    return k, tuple(called(t) for t in binding)
