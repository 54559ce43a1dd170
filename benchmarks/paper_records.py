"""Reading the JSONs of benchmarks/paper.py, whatever is missing in them."""

from __future__ import annotations

import math
from typing import Any

ARMS = {"fp16": "mixed", "fp16-unscaled": "mixed unscaled", "fp16-pure": "pure FP16"}
MISSING = "not measured"
Record = dict[str, Any]


def missing(reason: str | None) -> str:
    """Why a figure is not there, said once."""
    return f"{MISSING}: {(reason or 'not in the JSON').removeprefix(f'{MISSING}: ')}"


def why_not(record: Record | None, state: str, training: Record) -> str:
    if record is None:
        failed = training.get("error") if state == "late" else None
        return f"not run: {failed}" if failed else "not run"
    return f"not run: {record.get('error') or record.get('reason') or (record.get('verification') or {}).get('reason')}"


def entries(record: Record, part: str) -> list[Record]:
    """The trials or the comparisons of a diagnosis."""
    return [entry for entry in (record.get("verification") or {}).get(part) or [] if isinstance(entry, dict)]


def number_of(value: Any) -> float | None:
    """A number of the JSON, which writes those that are none as words."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def shown(value: Any) -> str:
    number = number_of(value)
    if number is None:
        return MISSING
    return f"{number:.4g}" if math.isfinite(number) else "not finite"


def judged(record: Record, arm: str) -> list[Record]:
    """Of losses and metrics, the metrics first: they are what the paper prints."""
    of_arm = [c for c in entries(record, "comparisons") if c.get("candidate") == arm]
    return sorted((c for c in of_arm if not c.get("is_ratio")), key=lambda c: c.get("quantity") == "loss")


def name_of(comparison: Record) -> str:
    return str(comparison.get("quantity", "?")).replace("_", " ")
