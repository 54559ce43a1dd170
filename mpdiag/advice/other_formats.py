"""BF16, TF32 and FP8 for the same job, from the tables of the FP32 run alone.

A power-of-two scale shifts a histogram, so each tensor's own scale costs nothing to try. FP8 is taken as Transformer
Engine and torchao train in it: E4M3 forward, E5M2 backward, a scale for each tensor from its largest magnitude over the
steps seen (Micikevicius et al., arXiv 2209.05433, section 3). Their scales are not powers of two; that is less than
one octave more than is counted here. Stretches far apart in training are judged each for itself: a scale is made from
a few recent steps there, too.

What fits does not flush or overflow; how precise it is, is said beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mpdiag.advice.loss_scale import Part
from mpdiag.advice.rounding_noise import noise_db
from mpdiag.diagnosis import Capture, TensorKind, TensorTable
from mpdiag.formats import BF16, E4M3, E5M2, TF32, FloatFormat
from mpdiag.other_formats import FormatForecast

FLUSH_SHARE = 0.01  # of a tensor's elements: the rule catalogue's R54, after TE's and torchao's per-tensor recipes
NONE, PER_TENSOR = "none", "per tensor"
FORWARD, BACKWARD = "forward", "backward"

_PARTS = {
    FORWARD: (TensorKind.ACTIVATION, TensorKind.WEIGHT),
    BACKWARD: (TensorKind.ACTIVATION_GRADIENT,),
}
_RECIPES = (
    (TF32, FORWARD, NONE),
    (TF32, BACKWARD, NONE),
    (BF16, FORWARD, NONE),
    (BF16, BACKWARD, NONE),
    (E4M3, FORWARD, PER_TENSOR),
    (E5M2, BACKWARD, PER_TENSOR),
)


@dataclass(frozen=True)
class Seen:
    """A tensor in one stretch of the training. first_step: None where all that was observed is one stretch."""

    table: TensorTable
    first_step: int | None

    @property
    def name(self) -> str:
        """The tensor as the advice names it."""
        return f"{self.table.name} ({self.table.kind})"


def what_if(capture: Capture, parts: Sequence[Part] = ()) -> tuple[FormatForecast, ...]:
    """A forecast for each format and half of the step of which any tensor was seen; parts: as advise() takes them."""
    found = []
    for fmt, part, scaling in _RECIPES:
        seen = seen_in(capture, parts, part)
        if seen:
            found.append(_forecast(fmt, part, scaling, seen, capture.steps))
    return tuple(found)


def seen_in(capture: Capture, parts: Sequence[Part], part: str) -> list[Seen]:
    """The tensors of half a step in each stretch of the training."""
    if len(parts) < 2:
        return [Seen(table, None) for table in looked_at(capture, part)]
    return [Seen(table, steps[0]) for steps, there in parts for table in looked_at(there, part)]


def looked_at(capture: Capture, part: str) -> list[TensorTable]:
    """The tensors of half a step that autocast has in 16 bits, all where types are not known; noise is left out."""
    known = any(table.amp_dtype is not None for table in capture.tables)
    return [
        table
        for table in capture.of_kind(*_PARTS[part])
        if table.abs_max and not table.noise_level and (table.amp_dtype == "float16" or not known)
    ]


def own_scale(fmt: FloatFormat, table: TensorTable) -> int:
    """log2 of the power of two that takes a tensor's largest magnitude just below the format's."""
    return math.floor(math.log2(fmt.max) - math.log2(table.abs_max)) if table.abs_max else 0


def by_tensor(seen: Sequence[Seen], share: Callable[[TensorTable], float]) -> dict[str, tuple[float, int | None]]:
    """The share that each tensor loses in the stretch where it loses most, and that stretch; worst first."""
    found: dict[str, tuple[float, int | None]] = {}
    for each in seen:
        lost = share(each.table)
        if each.name not in found or lost > found[each.name][0]:
            found[each.name] = (lost, each.first_step)
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def lost_by_tensor(shares: Mapping[str, tuple[float, int | None]]) -> dict[str, float]:
    """The share lost of each tensor that loses any, worst first."""
    return {name: share for name, (share, _) in shares.items() if share}


def least(values: Sequence[float | None]) -> float | None:
    """The smallest of those that are known."""
    return min((value for value in values if value is not None), default=None)


def _forecast(fmt: FloatFormat, part: str, scaling: str, seen: Sequence[Seen], steps: int) -> FormatForecast:
    def scale(table: TensorTable) -> int:
        return own_scale(fmt, table) if scaling == PER_TENSOR else 0

    tables = [each.table for each in seen]
    elements = sum(table.signal.finite_nonzero for table in tables) or 1
    shares = by_tensor(seen, lambda table: table.signal.usage(fmt, scale(table)).underflow)
    losing = sum(share > FLUSH_SHARE for share, _ in shares.values())
    worst, (most, worst_step) = next(iter(shares.items()))
    overflow = sum(table.signal.overflows(fmt, scale(table)) for table in tables) / elements
    noise = least([noise_db(table.signal, fmt, scale(table)) for table in tables])
    return FormatForecast(
        format=fmt.name,
        part=part,
        scaling=scaling,
        tensors=len(shares),
        significant_bits=fmt.mantissa_bits + 1,
        underflow=sum(table.signal.underflows(fmt, scale(table)) for table in tables) / elements,
        energy_lost=max(table.signal.energy_lost(fmt, scale(table)) for table in tables),
        overflow=overflow,
        losing=losing,
        worst=worst if most else None,
        worst_underflow=most,
        verdict=_verdict(fmt, scaling, len(shares), losing, overflow),
        lost=lost_by_tensor(shares),
        noise_db=noise,
        steps=steps,
        worst_step=worst_step if most else None,
    )


def _verdict(fmt: FloatFormat, scaling: str, tensors: int, losing: int, overflow: float) -> str:
    bits = f"{fmt.mantissa_bits + 1} significant bits"
    if overflow:
        return f"overflows, {bits}"
    if not losing:
        return f"range fits, {bits}"
    if scaling == PER_TENSOR:
        return f"{losing} of {tensors} tensors need finer scales (by row or block) or BF16, {bits}"
    return f"{losing} of {tensors} tensors lose more than {FLUSH_SHARE:.0%}, {bits}"
