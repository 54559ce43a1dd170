"""MXFP8 and NVFP4 for the same job, from what was counted inside blocks in the first step observed.

MXFP8 is taken as NVIDIA trains in it, E4M3 both ways (arXiv 2506.08027). So is NVFP4 (arXiv 2509.25149), but what is
counted is rounding to nearest: its recipe rounds gradients stochastically, which loses none of them on average, and
mixes 16 elements by a Hadamard transform before the weight gradients' products, which spreads outliers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpdiag.advice.other_formats import BACKWARD, FLUSH_SHARE, FORWARD, looked_at, lost_by_tensor, spoken
from mpdiag.blocks import MX_BLOCK, NVFP4_BLOCK, BlockCounts
from mpdiag.diagnosis import Capture, TensorTable
from mpdiag.formats import E4M3, E5M2
from mpdiag.other_formats import FormatForecast

NVFP4_SHARE = 0.15  # of a tensor's elements: twice what a normal one loses (6.8 %); a Laplace one loses 12.8 %

Measure = Callable[[BlockCounts], int]


@dataclass(frozen=True)
class _Recipe:
    name: str
    block: int
    significant_bits: int
    limit: float
    lost: Measure
    energy_lost: Callable[[BlockCounts], float]


_RECIPES = (
    _Recipe(
        "MXFP8",
        MX_BLOCK,
        E4M3.mantissa_bits + 1,
        FLUSH_SHARE,
        lambda counts: counts.mx_underflows(E4M3),
        lambda counts: counts.mx_energy_lost(E4M3),
    ),
    _Recipe("NVFP4", NVFP4_BLOCK, 2, NVFP4_SHARE, lambda counts: counts.nvfp4_lost, BlockCounts.nvfp4_energy_lost),
)


def what_if_in_blocks(capture: Capture) -> tuple[FormatForecast, ...]:
    """A forecast for each block-scaled format and half of the step of which any tensor was counted in blocks."""
    found = []
    for recipe in _RECIPES:
        for part in (FORWARD, BACKWARD):
            tables = [table for table in looked_at(capture, part) if table.blocks and table.blocks.elements]
            if tables:
                found.append(_forecast(recipe, part, tables))
    return tuple(found)


def _forecast(recipe: _Recipe, part: str, tables: Sequence[TensorTable]) -> FormatForecast:
    counts = [table.blocks for table in tables if table.blocks]
    shares = [recipe.lost(each) / each.elements for each in counts]
    losing = sum(share > recipe.limit for share in shares)
    most = max(range(len(tables)), key=shares.__getitem__)
    elements = sum(each.elements for each in counts)
    return FormatForecast(
        format=recipe.name,
        part=part,
        scaling=f"per block of {recipe.block}",
        tensors=len(tables),
        significant_bits=recipe.significant_bits,
        underflow=sum(map(recipe.lost, counts)) / elements,
        energy_lost=max(map(recipe.energy_lost, counts)),
        overflow=0.0,  # a block's scale is made for its largest
        losing=losing,
        worst=spoken(tables[most]) if shares[most] else None,
        worst_underflow=shares[most],
        verdict=_verdict(recipe, part, counts, losing),
        lost=lost_by_tensor(tables, shares),
    )


def _verdict(recipe: _Recipe, part: str, counts: Sequence[BlockCounts], losing: int) -> str:
    bits = f"{recipe.significant_bits} significant bits"
    told = [f"fits, {bits}"]
    if losing:
        told = [f"{losing} of {len(counts)} tensors lose more than {recipe.limit:.0%}, {bits}"]
    if recipe.name == "MXFP8" and losing:
        wider = sum(each.mx_underflows(E5M2) > recipe.limit * each.elements for each in counts)
        told.append(f"with E5M2 elements {wider}")
    if recipe.name == "NVFP4":
        vanished = sum(each.nvfp4_vanished > FLUSH_SHARE * each.elements for each in counts)
        if vanished:
            told.append(f"of {vanished} more than {FLUSH_SHARE:.0%} lies in blocks too small for any scale")
        if part == BACKWARD:
            told.append("rounded to nearest: stochastic rounding, as recipes have it here, loses less")
    return "; ".join(told)
