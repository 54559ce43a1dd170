"""Every tensor's counts as CSV, one row a tensor."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from mpdiag.diagnosis import Diagnosis
from mpdiag.formats import BF16, FP16

COLUMNS = (
    "name", "kind", "module_type", "dtype", "amp_dtype", "elements", "steps", "abs_max", "abs_min", "zeros", "infs",
    "nans", "fp16_underflow", "fp16_subnormal", "fp16_overflow", "bf16_underflow", "stagnant_fp16", "noise_level",
    "source",
)  # fmt: skip


Cell = str | int | float | bool | None


def render(diagnosis: Diagnosis) -> str:
    """CSV with a header; shares are fractions at scale 1; what does not apply is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows(diagnosis))
    return stream.getvalue()


def rows(diagnosis: Diagnosis) -> Iterator[tuple[Cell, ...]]:
    """One tuple a tensor, in the order of COLUMNS; None does not apply."""
    for t in diagnosis.capture.tables if diagnosis.capture else ():
        half, brain = t.histogram.usage(FP16), t.histogram.usage(BF16)
        stagnant = (t.stagnant or {}).get("FP16")
        yield (
            t.name, t.kind, t.module_type, t.dtype, t.amp_dtype, t.elements, t.steps, t.abs_max, t.abs_min,
            t.histogram.zeros, t.histogram.infs, t.histogram.nans, half.underflow, half.subnormal, half.overflow,
            brain.underflow, stagnant, t.noise_level, t.source,
        )  # fmt: skip
