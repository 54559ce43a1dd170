"""The loss scale and its whole feasible window, from exponent tables alone.

2^k with k in [lower, upper]. The upper end keeps every gradient that is FP16 under autocast, activation and weight
gradients alike, below 65504; the lower end keeps what rounds to zero negligible. Rule and thresholds: the LogMax tail
of OpenSeq2Seq (Kuchaiev et al. 2018, 3.09 standard deviations: P(overflow) < 0.001) applied to activation gradients
too (Micikevicius et al., arXiv 1710.03740, section 3.2, has the two ends).

Inside the window both ends drift: gradients shrink as a model learns, and their maxima grow. The scale keeps
GROWTH_OCTAVES below the upper end as far as nothing that matters is lost for it, because each octave there is a step
that is not skipped, while octaves far above the lower end recover almost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpdiag.diagnosis import Capture, LossScaleAdvice, ScalePoint, TensorKind, TensorTable
from mpdiag.formats import FP16
from mpdiag.histogram import ExponentHistogram

POOLED_LOSS = 1e-3  # share of all gradient elements that may become zero: 0.1 %, a fiftieth of the paper's figure 2b
TENSOR_LOSS = 0.05  # share of one tensor's: the 5 % of the paper's figure 2b, the least it calls relevant
NEGLIGIBLE_ENERGY = 2.0**-22  # squared-norm share of FP16's own rounding error (relative 2^-11 at most, squared)
TAIL_SIGMAS = 3.09  # one-sided 99.9 % of a normal distribution
MANY_STEPS = 100  # from here on one octave of headroom above the largest gradient seen, before two
CAP = 24  # beyond 2^24 FP32's own subnormals would count; OpenSeq2Seq stops there too
DEFAULT_INIT_LOG2 = 16  # torch.amp.GradScaler's init_scale
DEFAULT_GROWTH_INTERVAL = 2000  # torch.amp.GradScaler's
NARROW_OCTAVES = 3  # a doubling of the scale soon leaves such a window, so it should be tried rarely
WIDE_OCTAVES = 12  # room for a static scale to be wrong by a factor of 60 on both sides
DECAY_OCTAVES = 8  # gradients shrink as a model learns (ResNet-18: 0.6 % lost at scale 1 at first, 84 % later)
# within 1,000 steps the largest gradient rose over that of the first 20 by 1.2 octaves (median of 11 jobs, 2 seeds),
# 3.7 at most but for a GAN's 6.4; set after a first trial of benchmarks/loss_scale.py, whose jobs these are
GROWTH_OCTAVES = 4
MAX_NAMED = 3

_GRADIENTS = (TensorKind.ACTIVATION_GRADIENT, TensorKind.WEIGHT_GRADIENT)


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


def recommend(capture: Capture) -> LossScaleAdvice:
    """The advice for one capture."""
    tables = fp16_gradients(capture)
    if not tables:
        return LossScaleAdvice(
            None,
            "none",
            None,
            None,
            {},
            None,
            None,
            None,
            None,
            None,
            "no gradient that is FP16 under autocast was seen",
        )
    pooled = sum((t.signal for t in tables), ExponentHistogram())
    upper, binds_upper = _upper(tables, capture)
    lower, binds_lower = _lower(tables, pooled)
    reason = f"window 2^{lower}..2^{upper} over {capture.steps} steps"
    if lower > upper and all(t.signal.energy_lost(FP16, upper) <= NEGLIGIBLE_ENERGY for t in tables):
        # what 2^upper loses is less than what rounding to FP16 changes anyway
        reason = f"2^{upper} loses elements only below FP16's own rounding error; by count alone it would be 2^{lower}"
        lower = upper
    chosen, mode = _choose(lower, upper, capture.steps, _negligible_from(tables, lower))
    if chosen is None:
        reason = f"no scale serves all: 2^{lower} or more is needed, 2^{upper} or less is possible"
    elif mode == "none":
        reason = f"nothing that matters is lost at scale 1 ({reason})"
    narrow = upper - lower < NARROW_OCTAVES
    interval = 4 * DEFAULT_GROWTH_INTERVAL if narrow else DEFAULT_GROWTH_INTERVAL
    return LossScaleAdvice(
        log2_scale=chosen,
        mode=mode,
        lower_log2=lower,
        upper_log2=upper,
        limited_by={"lower": binds_lower, "upper": binds_upper},
        underflow_before=pooled.usage(FP16).underflow,
        underflow_after=None if chosen is None else pooled.usage(FP16, chosen).underflow,
        energy_lost_before=pooled.energy_lost(FP16),
        energy_lost_after=None if chosen is None else pooled.energy_lost(FP16, chosen),
        snippet=_snippet(chosen, mode, interval),
        reason=reason,
        growth_interval=interval if mode == "dynamic" else None,
        curve=_curve(pooled, min(lower, 0) - 4, max(upper, CAP) + 8),
    )


def _upper(tables: Sequence[TensorTable], capture: Capture) -> tuple[int, tuple[str, ...]]:
    """The largest k, and the tensors that would be first to overflow beyond it."""
    margin = 1 if capture.steps >= MANY_STEPS else 2
    ceiling = math.log2(FP16.max)
    bounds = {
        f"{t.name} ({t.kind})": min(
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


def _lower(tables: Sequence[TensorTable], pooled: ExponentHistogram) -> tuple[int, tuple[str, ...]]:
    """The smallest k that loses little enough, and the tensors that still lose too much one octave below."""

    def enough(k: int) -> bool:
        return pooled.underflows(FP16, k) <= POOLED_LOSS * pooled.finite_nonzero and all(
            t.signal.underflows(FP16, k) <= TENSOR_LOSS * t.signal.finite_nonzero for t in tables
        )

    # FP32 spans 2^-149..2^127, so the answer lies between these
    k = next(k for k in range(-152, 153) if enough(k))
    worst = sorted(tables, key=lambda t: t.signal.usage(FP16, k - 1).underflow, reverse=True)
    binding = [t for t in worst if t.signal.usage(FP16, k - 1).underflow > 0][:MAX_NAMED]
    return k, tuple(f"{t.name} ({t.kind})" for t in binding)


def _negligible_from(tables: Sequence[TensorTable], lower: int) -> int:
    """The smallest k, up to lower, from which no tensor loses more than a negligible part of its squared norm."""
    first, last = -152, lower
    while first < last:  # what is lost only falls as k grows
        middle = (first + last) // 2
        if all(t.signal.energy_lost(FP16, middle) <= NEGLIGIBLE_ENERGY for t in tables):
            last = middle
        else:
            first = middle + 1
    return last


def _choose(lower: int, upper: int, steps: int, negligible_from: int) -> tuple[int | None, str]:
    if lower > upper:
        return None, "none"
    if lower <= -DECAY_OCTAVES and upper >= GROWTH_OCTAVES:  # without a scaler nobody skips a step that overflows
        return 0, "none"
    if upper - lower >= WIDE_OCTAVES and steps >= MANY_STEPS:
        return upper - GROWTH_OCTAVES, "static"
    return min(upper, max(lower, negligible_from + DECAY_OCTAVES, upper - GROWTH_OCTAVES)), "dynamic"


def _snippet(log2_scale: int | None, mode: str, growth_interval: int) -> str | None:
    if log2_scale is None:
        return None
    if mode == "none":
        return (
            'with torch.autocast("cuda", dtype=torch.float16):\n    loss = compute_loss(model, batch)\n'
            "loss.backward()\noptimizer.step()\noptimizer.zero_grad()\n"
        )
    extra = ""
    if mode == "static":
        extra = ", growth_interval=10**9"
    elif growth_interval != DEFAULT_GROWTH_INTERVAL:
        extra = f", growth_interval={growth_interval}"
    return (
        f'scaler = torch.amp.GradScaler("cuda", init_scale=2.0**{log2_scale}{extra})\n\n'
        'with torch.autocast("cuda", dtype=torch.float16):\n    loss = compute_loss(model, batch)\n'
        "scaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()\noptimizer.zero_grad()\n"
    )


def _curve(pooled: ExponentHistogram, first: int, last: int) -> tuple[ScalePoint, ...]:
    points = []
    for k in range(first, last + 1):
        usage = pooled.usage(FP16, k)
        points.append(ScalePoint(k, usage.underflow, pooled.energy_lost(FP16, k), usage.overflow))
    return tuple(points)
