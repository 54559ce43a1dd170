"""Gradient tables and captures written by hand for the loss scale, and the window it gets on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpdiag.advice.loss_scale import recommend
from mpdiag.diagnosis import Capture, SelfTest, TensorKind, TensorTable
from mpdiag.histogram import ExponentHistogram

ACTIVATION, WEIGHT = TensorKind.ACTIVATION_GRADIENT, TensorKind.WEIGHT_GRADIENT
FEW, MANY = 20, 100


def table(
    name: str,
    bins: dict[int, int],
    maxima: float | Sequence[float] | None = None,
    kind: TensorKind = WEIGHT,
    steps: int = FEW,
    **more: Any,
) -> TensorTable:
    """A gradient table; without maxima each step reaches the bottom of the highest binade."""
    histogram = ExponentHistogram.from_bins(bins)
    if maxima is None:
        maxima = 2.0**histogram.highest
    by_step = (float(maxima),) * steps if isinstance(maxima, int | float) else tuple(maxima)
    fields = {"amp_dtype": "float16", "abs_max": max(by_step), "abs_min": 2.0**histogram.lowest} | more
    return TensorTable(
        name, "Linear", kind, "float32", histogram.total // steps, steps, histogram, abs_max_by_step=by_step, **fields
    )


def capture(*tables: TensorTable, steps: int = FEW, **more: Any) -> Capture:
    fields = {"losses": (1.0,) * steps, "loss_amp_dtype": "float32"} | more
    return Capture("FP32", "cpu", steps, 0, True, SelfTest(True, 2, 0.0, 0.0), tables, **fields)


def window(*tables: TensorTable, **more: Any) -> tuple[int | None, int | None]:
    advice = recommend(capture(*tables, **more))
    return advice.lower_log2, advice.upper_log2
