"""A tensor's totals as a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpdiag.capture.columns import Row
from mpdiag.diagnosis import TensorKind, TensorTable


@dataclass(frozen=True)
class Tensor:
    """What a row of the count table is about. elements: of the whole tensor, where only parts of it are counted."""

    name: str
    module_type: str
    kind: TensorKind
    dtype: str
    elements: int | None = None


def tabled(
    tensor: Tensor, counted: Row, steps: int, abs_max_by_step: Sequence[float], source: str | None
) -> TensorTable:
    """The record of a tensor's counts over `steps` steps."""
    nonzero = counted.histogram.finite_nonzero
    stagnant = None
    if tensor.kind is TensorKind.WEIGHT_UPDATE and counted.wanted:
        lost = {"FP16": counted.stagnant_fp16, "BF16": counted.stagnant_bf16}
        own = {"float16": "FP16", "bfloat16": "BF16"}.get(tensor.dtype)
        stagnant = {fmt: count / counted.wanted for fmt, count in lost.items() if own in (None, fmt)}
    counted_elements = counted.histogram.total // steps
    elements = tensor.elements if tensor.elements is not None else counted_elements
    return TensorTable(
        name=tensor.name,
        module_type=tensor.module_type,
        kind=tensor.kind,
        dtype=tensor.dtype,
        elements=elements,
        steps=steps,
        histogram=counted.histogram,
        abs_max=max(abs_max_by_step) if nonzero else None,
        abs_min=counted.abs_min if nonzero else None,
        abs_max_by_step=tuple(abs_max_by_step),
        stagnant=stagnant,
        source=source,
        sampled=counted.histogram.total / (elements * steps) if counted.histogram.total < elements * steps else None,
    )
