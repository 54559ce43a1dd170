"""reports/prediction.md, from its JSON alone."""

from __future__ import annotations

from typing import Any

from made_on import made_on

MOST_MEDIAN, MOST_P95 = 0.1, 1.0  # points: what was to be reached


def prediction_page(record: dict[str, Any]) -> str:
    scales = " and ".join(f"2^{k}" for k in record["log2_scales"])
    rows = record["rows"]
    lines = [
        "# What FP32 foretells of FP16",
        "",
        f"{made_on(record)}.",
        "",
        "Underflow of every activation, activation gradient and weight gradient that is FP16 under autocast, at the "
        f"initial weights and after {record['steps']} FP32 steps, at scale {scales}, against one FP16 step from the "
        "same weights and batch.",
        "",
        "- Rounded pass: activations by their counts; gradients by a second FP32 pass whose values and gradients are "
        "rounded to FP16 where autocast has them so. It knows what upstream has become zero. This is what a report "
        "calls foretold.",
        "- Counts alone: each tensor by its own exponents in one FP32 step, as the loss scale is advised.",
        "- Errors are in percentage points over tensors that are not noise (a bias gradient that is mathematically "
        "zero, or a part of one) and that FP16 did not overflow. Worst: the largest error of one tensor with the "
        "rounded pass.",
        "",
        "| kind | comparisons | noise | rounded pass: median | 95 % | worst | counts alone: median | 95 % | "
        "most lost by a tensor | overflow not foretold |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(row) for row in rows]
    if not all("overflowed" in row for row in rows):
        lines += [
            "",
            "Comparisons: with those that overflow broke, which have no error; this record does not count them.",
        ]
    lines += ["", _reached("With the rounded pass", rows, ""), "", _reached("By the counts alone", rows, "alone_")]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    worst = max((t["error_points"] for t in row["worst"] if not t["observed_overflow"] > 0), default=None)
    figures = [_points(row[f"{which}_error_points"]) for which in ("median", "p95")]
    figures += [_points(worst), *(_points(row[f"alone_{which}_error_points"]) for which in ("median", "p95"))]
    most = row["largest_observed_underflow"]
    cells = [row["kind"], str(row["comparisons"]), str(row["noise"]), *figures]
    cells += ["none" if most is None else f"{100 * most:.1f} %", ", ".join(row["overflow_missed"]) or "none"]
    return f"| {' | '.join(cells)} |"


def _points(value: float | None) -> str:
    return "none compared" if value is None else f"{value:.3f}"


def _reached(how: str, rows: list[dict[str, Any]], prefix: str) -> str:
    """How many kinds are within both limits, and by how much the others are beyond."""
    within = [row for row in rows if _within(row, prefix)]
    others = [f"{row['kind']} {_points(row[f'{prefix}p95_error_points'])}" for row in rows if row not in within]
    beyond = f"; the 95th percentile of the others: {', '.join(others)}" if others else ""
    return (
        f"{how}, {len(within)} of {len(rows)} kinds have a median error of at most {MOST_MEDIAN:g} and a 95th "
        f"percentile of at most {MOST_P95:g} point{beyond}."
    )


def _within(row: dict[str, Any], prefix: str) -> bool:
    median, p95 = row[f"{prefix}median_error_points"], row[f"{prefix}p95_error_points"]
    return median is not None and p95 is not None and median <= MOST_MEDIAN and p95 <= MOST_P95
