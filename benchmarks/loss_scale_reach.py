"""What benchmarks/loss_scale.py is to reach, from its rows alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

OURS = "mpdiag"
RUNS_WITHOUT_SKIP, RATIO = 0.95, 1.1
LEFT_OUT, COUNTED = "those at which gradients overflow left out", "all of it lost where gradients overflow"
NEGLIGIBLE = {"share_lost": 1e-3, "energy_lost": 2.0**-22}  # mpdiag's own limits: 0.1 %, FP16's rounding error squared

Row = dict[str, Any]


def reach(rows: list[Row]) -> list[Row]:
    """What was to be reached, in figures: steps skipped, and what is lost against the best policy of a checkpoint."""
    runs = [row for row in rows if row["policy"] == OURS]
    if not runs:
        return []
    clean = [row for row in runs if not row["skipped_after_first"] and not row["nonfinite_losses"]]
    lines = [
        {
            "what": "runs without a skipped step after the first, nor a loss that is not finite",
            "limit": RUNS_WITHOUT_SKIP,
            "measured": len(clean) / len(runs),
            "met": len(clean) / len(runs) >= RUNS_WITHOUT_SKIP,
            "misses": [f"{r['job']} seed {r['seed']}: {_missed(r)}" for r in runs if r not in clean],
        }
    ]
    for what, floor in NEGLIGIBLE.items():
        lines += [_against_best_mean(rows, runs, what, overflow) for overflow in (None, 1.0)]
        for ignored in (0.0, floor):
            over = list(_over_best(rows, runs, what, ignored))
            worst = max((ratio for _, ratio in over), default=1.0)
            lines.append(
                {
                    "what": f"{what} against the best policy"
                    + (f", where it is above {ignored:.1e}" if ignored else ", everywhere"),
                    "limit": RATIO,
                    "measured": worst if math.isfinite(worst) else None,
                    "met": not over,
                    "misses": [f"{name}: {ratio:.3g}" for name, ratio in over],
                }
            )
    return lines


def _against_best_mean(rows: list[Row], runs: list[Row], what: str, overflow: float | None) -> Row:
    """Our mean against the best other policy's. overflow: what a checkpoint counts whose gradients overflow.

    None leaves it out, as the target said when the runs were made: a policy that skips such a step loses no element.
    1.0 counts all of it, which was added after the first runs: else a policy gains by overflowing.
    """
    mine = _mean(runs, what, overflow)
    theirs = {
        policy: _mean(others, what, overflow)
        for policy in {r["policy"] for r in rows if r.get("lost") and r["policy"] != OURS}
        if _pairs(others := [r for r in rows if r["policy"] == policy], policy) == _pairs(runs, OURS)
    }  # a mean over other jobs is no comparison
    known = {policy: mean for policy, mean in theirs.items() if mean is not None}
    best = min(known, key=lambda policy: known[policy], default=OURS)
    base = known.get(best, mine) or 0.0
    ratio = math.inf if mine is None else (mine / base if base else math.inf) if mine else 0.0
    counted = LEFT_OUT if overflow is None else COUNTED
    return {
        "what": f"{what}, mean over all jobs, seeds and checkpoints, {counted}, against the best other policy's "
        f"({best})",
        "limit": RATIO,
        "measured": ratio if math.isfinite(ratio) else None,
        "met": ratio <= RATIO,
        "misses": [] if ratio <= RATIO else ["no checkpoint" if mine is None else f"{mine:.2e} against {base:.2e}"],
    }


def _mean(runs: list[Row], what: str, overflow: float | None) -> float | None:
    """Over all checkpoints; overflow: what one counts whose gradients overflow, None for nothing at all."""
    values = [point.get(what, overflow) for run in runs for point in run.get("lost", [])]
    kept = [value for value in values if value is not None]
    return statistics.fmean(kept) if kept else None


def _pairs(rows: list[Row], policy: str) -> set[tuple[str, int]]:
    return {(row["job"], row["seed"]) for row in rows if row["policy"] == policy}


def _missed(row: Row) -> str:
    broken = f", {row['nonfinite_losses']} losses not finite" if row["nonfinite_losses"] else ""
    return f"{row['skipped_after_first']} skipped{broken}"


def _over_best(rows: list[Row], runs: list[Row], what: str, ignored: float) -> Iterator[tuple[str, float]]:
    """(where, ratio) of each checkpoint at which ours loses more than the best by more than the limit."""
    for run in runs:
        peers = [r for r in rows if (r["job"], r["seed"]) == (run["job"], run["seed"]) and "lost" in r]
        for index, point in enumerate(run.get("lost", [])):
            best = min((r["lost"][index][what] for r in peers if what in r["lost"][index]), default=None)
            if best is None or what not in point or point[what] <= ignored:
                continue
            if point[what] > RATIO * best:
                yield f"{run['job']} seed {run['seed']} step {point['step']}", point[what] / best if best else math.inf
