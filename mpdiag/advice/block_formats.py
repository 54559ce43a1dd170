"""MXFP8 and NVFP4 for the same job, from what was counted inside blocks in the first step of each stretch.

MXFP8 is taken as NVIDIA trains in it, E4M3 both ways (arXiv 2506.08027). So is NVFP4 (arXiv 2509.25149), but what is
counted is rounding to nearest: its recipe rounds gradients stochastically, which loses none of them on average, and
mixes 16 elements by a Hadamard transform before the weight gradients' products, which spreads outliers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpdiag.advice.loss_scale import Part
from mpdiag.advice.other_formats import (
    BACKWARD,
    FLUSH_SHARE,
    FORWARD,
    Seen,
    by_tensor,
    least,
    lost_by_tensor,
    seen_in,
)
from mpdiag.advice.rounding_noise import mx_noise_db, nvfp4_noise_db
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
    noise_db: Callable[[BlockCounts], float | None]


_RECIPES = (
    _Recipe(
        "MXFP8",
        MX_BLOCK,
        E4M3.mantissa_bits + 1,
        FLUSH_SHARE,
        lambda counts: counts.mx_underflows(E4M3),
        lambda counts: counts.mx_energy_lost(E4M3),
        lambda counts: mx_noise_db(counts, E4M3),
    ),
    _Recipe(
        "NVFP4",
        NVFP4_BLOCK,
        2,
        NVFP4_SHARE,
        lambda counts: counts.nvfp4_lost,
        BlockCounts.nvfp4_energy_lost,
        nvfp4_noise_db,
    ),
)


def what_if_in_blocks(capture: Capture, parts: Sequence[Part] = ()) -> tuple[FormatForecast, ...]:
    """A forecast for each block-scaled format and half of the step of which any tensor was counted in blocks."""
    found = []
    for recipe in _RECIPES:
        for part in (FORWARD, BACKWARD):
            seen = [e for e in seen_in(capture, parts, part) if e.table.blocks and e.table.blocks.elements]
            if seen:
                found.append(_forecast(recipe, part, seen))
    return tuple(found)


def _forecast(recipe: _Recipe, part: str, seen: Sequence[Seen]) -> FormatForecast:
    def share(table: TensorTable) -> float:
        return recipe.lost(table.blocks) / table.blocks.elements if table.blocks else 0.0

    counts = [each.table.blocks for each in seen if each.table.blocks]
    shares = by_tensor(seen, share)
    losing = sum(most > recipe.limit for most, _ in shares.values())
    worst, (most, worst_step) = next(iter(shares.items()))
    elements = sum(each.elements for each in counts)
    steps = {each.first_step: each.table.blocks.steps for each in seen if each.table.blocks}
    along = Counter({each.name: each.table.blocks.along for each in seen if each.table.blocks}.values()).most_common()
    return FormatForecast(
        format=recipe.name,
        part=part,
        scaling=f"per block of {recipe.block}",
        tensors=len(shares),
        significant_bits=recipe.significant_bits,
        underflow=sum(map(recipe.lost, counts)) / elements,
        energy_lost=max(map(recipe.energy_lost, counts)),
        overflow=0.0,  # a block's scale is made for its largest
        losing=losing,
        worst=worst if most else None,
        worst_underflow=most,
        verdict=_verdict(recipe, part, seen, losing),
        lost=lost_by_tensor(shares),
        noise_db=least([recipe.noise_db(each) for each in counts]),
        steps=sum(steps.values()),
        along="; ".join(f"{words} ({count})" for words, count in along) if len(along) > 1 else along[0][0],
        worst_step=worst_step if most else None,
    )


def _verdict(recipe: _Recipe, part: str, seen: Sequence[Seen], losing: int) -> str:
    def beyond(lost: Measure, limit: float) -> int:
        """Tensors that lose more than the limit in any stretch."""
        return len({e.name for e in seen if e.table.blocks and lost(e.table.blocks) > limit * e.table.blocks.elements})

    bits = f"{recipe.significant_bits} significant bits"
    told = [f"range fits, {bits}"]
    if losing:
        told = [f"{losing} of {len({each.name for each in seen})} tensors lose more than {recipe.limit:.0%}, {bits}"]
    if recipe.name == "MXFP8" and losing:
        told.append(f"with E5M2 elements {beyond(lambda counts: counts.mx_underflows(E5M2), recipe.limit)}")
    if recipe.name == "NVFP4":
        vanished = beyond(lambda counts: counts.nvfp4_vanished, FLUSH_SHARE)
        if vanished:
            told.append(f"of {vanished} more than {FLUSH_SHARE:.0%} lies in blocks too small for any scale")
        if part == BACKWARD:
            told.append("rounded to nearest: stochastic rounding, as recipes have it here, loses less")
    return "; ".join(told)
