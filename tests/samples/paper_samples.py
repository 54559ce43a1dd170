"""Records such as benchmarks/paper.py leaves, and where to look on the page that is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def compared(arm: str, quantity: str, verdict: str, value: Any = 1.5, **more: Any) -> dict[str, Any]:
    fields = {"baseline": "fp32", "baseline_value": 1.25, "difference": 0.25, "interval": [0.1, 0.4], "margin": 0.05}
    made = {"candidate": arm, "quantity": quantity, "verdict": verdict, "candidate_value": value, "reason": None}
    return {**fields, **made, "is_ratio": False, **more}


def ratio(quantity: str, value: float | None, **more: Any) -> dict[str, Any]:
    return compared("fp16", quantity, "better", 8.0, is_ratio=True, difference=value, **more)


def record(*comparisons: dict[str, Any], cut: tuple[str, ...] = (), **verification: Any) -> dict[str, Any]:
    trials = [{"arm": "fp32", "seed": seed, "steps": 40} for seed in (0, 1, 2)]
    return {
        "environment": {"gpu": "H100", "driver": "580.1", "torch": "2.11.0"},
        "target": {"parameters": 2_500_000, "optimizer": "SGD(lr=2)", "notes": ["data: of old books"]},
        "advice": {"loss_scale": {"log2_scale": 7}},
        "verification": {"trials": trials, "comparisons": list(comparisons), "cut": list(cut), **verification},
    }


EVEN = [compared(arm, "loss", "equivalent", 1.25) for arm in ("fp16", "fp16-unscaled", "fp16-pure")]
TRAINED = {
    "steps": 900, "first_loss": 4.5, "last_loss": 1.5, "metric": {"bits_per_character": 2.25},
    "late_learning_rate": 0.02, "why": "it was chosen",
}  # fmt: skip


def line(text: str, start: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(start))


def row_of(text: str, start: str, columns: Sequence[str]) -> dict[str, str]:
    values = [cell.strip() for cell in line(text, start).strip("|").split("|")]
    return dict(zip(columns, values, strict=True))
