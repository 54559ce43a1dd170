"""What a record that was read cannot be, whoever edited its file: numbers that nothing measures, lists that disagree.

Such a file is refused when it is read: drawn, it would end in a crash or in a figure that means nothing.
"""

from __future__ import annotations

import math
from typing import Any

from mpdiag.accuracy import Comparison, CurveBand
from mpdiag.costs.memory import MemorySplit
from mpdiag.costs.timing import Timing
from mpdiag.drift import WindowAt
from mpdiag.plan import IslandPlan
from mpdiag.scale import LossScaleAdvice

LARGEST_LOG2 = 2000
"""Of any exponent: FP64's end at 1023 and -1074, a scale's are as far away again. What is beyond was not measured."""

SCALES = {
    (LossScaleAdvice, "log2_scale"): (-152, 127),
    (LossScaleAdvice, "upper_log2"): (-1000, 127),
    (IslandPlan, "log2_scale"): (-152, 127),
}
"""Least and largest log2 of what is trained with, upper_log2 where no scale serves all. A GradScaler holds it in FP32,
which ends at 2^127; the least is searched from 2^-152 on (scale_window.py), and 2^1000 is still a number to divide by.
"""

LARGEST_WHOLE = 2**64
"""Of any whole number: a seed ends just below it, and bytes, elements and steps far below."""

LARGEST_MARGIN = 1e300
"""FP64 ends at 1.8e308, and a picture needs room beyond its margin."""


def require_plausible(record: Any, fields: dict[str, Any]) -> None:
    """Raise ValueError, with the field's name, for what no measurement gives. fields: the record's own, by name."""
    for name, value in fields.items():
        several = value if isinstance(value, tuple) else tuple(value.values()) if isinstance(value, dict) else (value,)
        for each in several:
            if isinstance(each, int | float) and not isinstance(each, bool):
                _require_a_number(name, each, *SCALES.get((type(record), name), (-LARGEST_LOG2, LARGEST_LOG2)))
    if isinstance(record, CurveBand):
        _require_one_a_step(record)
    elif isinstance(record, Comparison) and record.margin is not None and not abs(record.margin) <= LARGEST_MARGIN:
        raise ValueError(f"margin cannot be {record.margin}")
    elif isinstance(record, WindowAt) and None not in (record.lower_log2, record.upper_log2):
        if None in (record.underflow, record.energy_lost):
            raise ValueError("a window without what is lost outside it")
    elif isinstance(record, MemorySplit) and record.total <= 0:
        raise ValueError("a peak of no bytes")
    elif isinstance(record, Timing) and not (record.arms and (record.samples or not record.batch_sizes)):
        raise ValueError("a timing of no arms, or of batches without their mean")


def _require_a_number(name: str, value: float, least_log2: int, largest_log2: int) -> None:
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise ValueError(f"{name} cannot be so large a number, of {len(str(abs(value)))} digits")
    an_exponent = "log2" in name or name == "lowest"
    if an_exponent and math.isfinite(value) and not least_log2 <= value <= largest_log2:
        raise ValueError(f"{name} cannot be {value:.6g}")  # what is drawn by powers of two would never end
    if "abs_max" in name and value < 0:
        raise ValueError(f"{name} cannot be {value:.6g}: it is a magnitude")
    if name == "noise_db" and not math.isfinite(value):
        raise ValueError(f"{name} cannot be {value}")


def _require_one_a_step(band: CurveBand) -> None:
    for name in ("mean_difference", "low", "high"):
        values = getattr(band, name)
        if values is not None and (not values or len(values) != len(band.steps)):
            raise ValueError(f"{name} has {len(values)} values for {len(band.steps)} steps")
