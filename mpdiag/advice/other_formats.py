"""BF16, TF32 and FP8 for the same job, from the tables of the FP32 run alone.

A power-of-two scale shifts a histogram, so each tensor's own scale costs nothing to try. FP8 is taken as Transformer
Engine and torchao train in it: E4M3 forward, E5M2 backward, a scale for each tensor from its largest magnitude over the
steps seen (Micikevicius et al., arXiv 2209.05433, section 3). Their scales are not powers of two; that is less than
one octave more than is counted here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def what_if(capture: Capture) -> tuple[FormatForecast, ...]:
    """A forecast for each format and half of the step of which any tensor was seen."""
    found = []
    for fmt, part, scaling in _RECIPES:
        tables = looked_at(capture, part)
        if tables:
            found.append(_forecast(fmt, part, scaling, tables))
    return tuple(found)


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


def _forecast(fmt: FloatFormat, part: str, scaling: str, tables: Sequence[TensorTable]) -> FormatForecast:
    scales = [own_scale(fmt, table) if scaling == PER_TENSOR else 0 for table in tables]
    pairs = list(zip(tables, scales, strict=True))
    elements = sum(table.signal.finite_nonzero for table in tables) or 1
    shares = [table.signal.usage(fmt, k).underflow for table, k in pairs]
    losing = sum(share > FLUSH_SHARE for share in shares)
    most = max(range(len(tables)), key=shares.__getitem__)
    worst = spoken(tables[most]) if shares[most] else None
    overflow = sum(table.signal.overflows(fmt, k) for table, k in pairs) / elements
    return FormatForecast(
        format=fmt.name,
        part=part,
        scaling=scaling,
        tensors=len(tables),
        significant_bits=fmt.mantissa_bits + 1,
        underflow=sum(table.signal.underflows(fmt, k) for table, k in pairs) / elements,
        energy_lost=max(table.signal.energy_lost(fmt, k) for table, k in pairs),
        overflow=overflow,
        losing=losing,
        worst=worst,
        worst_underflow=shares[most],
        verdict=_verdict(fmt, scaling, len(tables), losing, overflow),
        lost=lost_by_tensor(tables, shares),
    )


def spoken(table: TensorTable) -> str:
    """A tensor as the advice names it."""
    return f"{table.name} ({table.kind})"


def lost_by_tensor(tables: Sequence[TensorTable], shares: Sequence[float]) -> dict[str, float]:
    """The share lost of each tensor that loses any, worst first."""
    pairs = sorted(zip(shares, map(spoken, tables), strict=True), key=lambda pair: -pair[0])
    return {name: share for share, name in pairs if share}


def _verdict(fmt: FloatFormat, scaling: str, tensors: int, losing: int, overflow: float) -> str:
    bits = f"{fmt.mantissa_bits + 1} significant bits"
    if overflow:
        return f"overflows, {bits}"
    if not losing:
        return f"fits, {bits}"
    if scaling == PER_TENSOR:
        return f"{losing} of {tensors} tensors need finer scales (by row or block) or BF16, {bits}"
    return f"{losing} of {tensors} tensors lose more than {FLUSH_SHARE:.0%}, {bits}"
