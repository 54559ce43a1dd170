"""Captures written by hand: one table of a tensor, a healthy layer, and what a check finds in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.diagnosis import Capture, Finding, SelfTest, TensorKind, TensorTable
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import Layer, LoopFacts

ACTIVATION, WEIGHT = TensorKind.ACTIVATION, TensorKind.WEIGHT
ACTIVATION_GRADIENT, WEIGHT_GRADIENT = TensorKind.ACTIVATION_GRADIENT, TensorKind.WEIGHT_GRADIENT
UPDATE = TensorKind.WEIGHT_UPDATE


def table(name: str, kind: TensorKind, bins: dict[int, int], abs_max: float | None = None, **more: Any) -> TensorTable:
    histogram = ExponentHistogram.from_bins(bins)
    largest = 2.0**histogram.highest if abs_max is None else abs_max
    fields = {"module_type": "Linear", "dtype": "float32", "amp_dtype": "float16", "source": "model.py:7"} | more
    return TensorTable(
        name, kind=kind, elements=histogram.total, steps=1, histogram=histogram, abs_max=largest,
        abs_min=2.0**histogram.lowest, abs_max_by_step=(largest,), **fields,
    )  # fmt: skip


def capture(*tables: TensorTable, **more: Any) -> Capture:
    fields = {"losses": (1.0,), "loss_amp_dtype": "float32", "input_abs_max": 3.0} | more
    return Capture("FP32", "cpu", 20, 0, True, SelfTest(True, 2, 0.0, 0.0), tables, **fields)


HEALTHY = (
    table("fc", ACTIVATION, {-3: 500, 2: 500}),
    table("fc", ACTIVATION_GRADIENT, {-12: 1000}),
    table("fc.weight", WEIGHT, {-4: 1000}),
    table("fc.weight", WEIGHT_GRADIENT, {-10: 1000}),
    table("fc.weight", UPDATE, {-10: 1000}, stagnant={"FP16": 0.01, "BF16": 0.1}, amp_dtype="float32"),
)


def found(code: str, *tables: TensorTable, **more: Any) -> list[Finding]:
    seen = capture(*tables, **more)
    return list(BY_CODE[code].find(seen, recommend(seen)))


def only(code: str, *tables: TensorTable, **more: Any) -> Finding:
    findings = found(code, *tables, **more)
    assert len(findings) == 1
    assert (findings[0].code, findings[0].name) == (code, BY_CODE[code].name)
    return findings[0]


def layered(*layers: tuple[str, int, int, int]) -> Capture:
    """Layers of (name, in, out, elements of the output)."""
    tables = [table(name, ACTIVATION, {0: elements}) for name, _, _, elements in layers]
    facts = LoopFacts({}, layers=tuple(Layer(name, "Linear", i, o, i) for name, i, o, _ in layers))
    return replace(capture(*tables), loop=facts)
