"""Reading the JSONs of benchmarks/paper.py, whatever is missing in them."""

from __future__ import annotations

import math
from typing import Any

ARMS = {"fp16": "mixed", "fp16-unscaled": "mixed unscaled", "fp16-pure": "pure FP16"}
COSTS = ("peak_memory_bytes", "step_time_ms", "energy_joules_per_sample")
MISSING = "not measured"
WORDS = {"inconclusive": "undecided", "not-measured": MISSING}
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


def verdict_of(comparison: Record) -> str:
    """The verdict on a loss or a metric in words; "not worse" where that much was shown and no more."""
    verdict = str(comparison.get("verdict") or MISSING)
    if verdict == "inconclusive" and (comparison.get("test") or {}).get("noninferior"):
        return "not worse"
    return WORDS.get(verdict, verdict)


def cuts(record: Record) -> list[str]:
    """What was cut to keep the time, and what ended the scan before that; not what TF32 needs no arm for."""
    lines = [str(line) for line in (record.get("verification") or {}).get("cut") or [] if line]
    kept = [line for line in lines if "already compute FP32 in full" not in line]
    stopped = record.get("reason") if entries(record, "trials") else None
    return [f"stopped before its end ({stopped})", *kept] if stopped else kept


def cost(record: Record, quantity: str, baseline: str = "fp32", arm: str = "fp16") -> Record:
    """An arm's ratio to a baseline in a cost, by default mixed precision's to FP32; empty where it was not tried."""
    pair = (quantity, baseline, arm)
    found = (c for c in entries(record, "comparisons") if c.get("is_ratio"))
    return next((c for c in found if (c.get("quantity"), c.get("baseline"), c.get("candidate")) == pair), {})


def peak_bytes(record: Record, arm: str) -> tuple[float | None, str | None]:
    """An arm's peak of allocated memory, or None and why there is none."""
    use, costs = memory_use(record, arm), (record.get("verification") or {}).get("costs") or {}
    return number_of(use.get("peak_allocated_bytes")), use.get("reason") or costs.get("memory_reason")


def memory_use(record: Record, arm: str) -> Record:
    """What was measured of an arm's memory; empty where it was not."""
    costs = (record.get("verification") or {}).get("costs") or {}
    uses = (use for use in costs.get("memory") or [] if isinstance(use, dict) and use.get("arm") == arm)
    return next(uses, {})


def largest(record: Record) -> str | None:
    """The largest batch in FP32 and in mixed precision; None where either is not known."""
    figures = [_batch(entry) for entry in largest_entries(record, ("fp32", "fp16"))]
    return " to ".join(figures) if all(figures) else None


def largest_entries(record: Record, arms: tuple[str, ...]) -> list[Record]:
    costs = (record.get("verification") or {}).get("costs") or {}
    found = {entry.get("arm"): entry for entry in costs.get("largest_batch") or [] if isinstance(entry, dict)}
    return [found.get(arm) or {} for arm in arms]


def _batch(entry: Record) -> str:
    return f"{'at least ' if entry.get('at_least') else ''}{entry['batch']}" if entry.get("batch") else ""


def extent(record: Record) -> str:
    """How long and how often the arms were trained: "20 steps x 3 seeds"."""
    trials = entries(record, "trials")
    steps = max((t.get("steps") or 0 for t in trials), default=0)
    mixed = {t.get("seed") for t in trials if t.get("arm") == "fp16"}
    seeds = len(mixed or {t.get("seed") for t in trials})  # those that make a pair
    return f"{steps} steps x {seeds} seed{'s' if seeds != 1 else ''}"


def name_of(comparison: Record) -> str:
    return str(comparison.get("quantity", "?")).replace("_", " ")
