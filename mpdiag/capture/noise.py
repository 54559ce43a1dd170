"""Gradients that are mathematically zero: rounding noise, not something FP16 could lose.

A bias in front of a normalisation, or of an attention key, cannot change the loss. Its gradient is a sum over the
module's output gradient that cancels exactly, so what FP32 reports is rounding error. Where one parameter holds
several biases (a packed query-key-value projection), that is true of a part of its elements.
"""

from __future__ import annotations

import math
from dataclasses import replace

from mpdiag.diagnosis import TensorKind, TensorTable

CANCELLED = 2.0**-18
"""A sum of n terms of random sign is about 1/sqrt(n) of the sum of their magnitudes: above 2^-17 up to 2^34 terms
a channel. FP32 rounding leaves about 2^-24 of it times a small factor. In between lies the limit. FP16 adds
terms that are each rounded by 2^-12: whatever lies below the limit is noise there, with any loss scale."""


def mark_noise(tables: tuple[TensorTable, ...]) -> tuple[TensorTable, ...]:
    """Give each bias gradient its noise floor: CANCELLED times what its terms add up to without their signs."""
    outputs = {t.name: t for t in tables if t.kind is TensorKind.ACTIVATION_GRADIENT}

    def marked(table: TensorTable) -> TensorTable:
        terms = _terms(table, outputs)
        if table.abs_max is None or not terms:
            return table
        floor = math.floor(math.log2(CANCELLED * terms))
        return replace(table, noise_floor_log2=floor, noise_level=table.abs_max < 2.0**floor)

    return tuple(marked(table) for table in tables)


def _terms(table: TensorTable, outputs: dict[str, TensorTable]) -> float | None:
    """What an element of a bias gradient adds up to without signs, a step; None for anything but a bias."""
    owner, _, leaf = table.name.rpartition(".")
    if table.kind is not TensorKind.WEIGHT_GRADIENT or not table.elements:
        return None
    if leaf == "in_proj_bias":  # nn.MultiheadAttention projects inside itself; no sum is below its largest result
        return table.abs_max
    output = outputs.get(owner)
    if not leaf.startswith("bias") or output is None or not output.histogram.finite_nonzero:
        return None
    return output.histogram.abs_sum / output.steps / table.elements
