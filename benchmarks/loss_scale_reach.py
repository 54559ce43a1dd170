"""What benchmarks/loss_scale.py is to reach, from its rows alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

OURS = "mpdiag"
RUNS_WITHOUT_SKIP, RATIO = 0.95, 1.1
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
        mine = _mean(runs, what)
        theirs = {
            policy: _mean([r for r in rows if r["policy"] == policy], what)
            for policy in {r["policy"] for r in rows if r.get("lost") and r["policy"] != OURS}
            if _pairs(rows, policy) == _pairs(runs, OURS)  # a mean over other jobs is no comparison
        }
        best = min(theirs, key=lambda policy: theirs[policy], default=OURS)
        base = (theirs | {OURS: mine})[best]
        ratio = (mine / base if base else math.inf) if mine else 0.0
        lines.append(
            {
                "what": f"{what}, mean over all jobs, seeds and checkpoints, all of it where the gradients overflow, "
                f"against the best other policy's ({best})",
                "limit": RATIO,
                "measured": ratio if math.isfinite(ratio) else None,
                "met": ratio <= RATIO,
                "misses": [] if ratio <= RATIO else [f"{mine:.2e} against {theirs[best]:.2e}"],
            }
        )
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


def _mean(runs: list[Row], what: str) -> float:
    """Over all checkpoints; a step whose gradients overflow is skipped, which loses all of it."""
    return statistics.fmean(point.get(what, 1.0) for run in runs for point in run.get("lost", []))


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
