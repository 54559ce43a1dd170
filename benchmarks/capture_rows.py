"""From blocks of benchmarks/capture.py to rows: ratios with their interval, memory, and the verdict on the targets."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from mpdiag.verify.block_ratio import ratio_interval

MIB = 2**20
NO_CPU_MEMORY = "torch keeps no peak of CPU memory"


@dataclass(frozen=True)
class Block:
    """One block of one arm. Memory and allocations are None on a CPU."""

    ms: float
    peak_bytes: int | None
    allocations: float | None
    seen: tuple[int, int] | None
    counted_by: str | None


def summarized(name: str, rounds: list[dict[str, Block]]) -> dict[str, object]:
    """An arm's blocks against the no-hooks blocks of the same rounds."""
    taken = [index for index, blocks in enumerate(rounds) if name in blocks]
    pairs = [(rounds[index]["none"], rounds[index][name]) for index in taken]
    ratios = [arm.ms / bare.ms for bare, arm in pairs]
    row: dict[str, object] = {
        "rounds": len(pairs),
        "in_rounds": taken,
        "block_ms": [arm.ms for _, arm in pairs],
        "ms": statistics.median(arm.ms for _, arm in pairs),
        "ratio": statistics.geometric_mean(ratios),
        "interval_95": ratio_interval(ratios),
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
        "peak_bytes": None,
        "extra_bytes": None,
        "allocations_a_step": None,
    }
    if pairs[0][0].peak_bytes is None:
        row["memory_not_measured"] = NO_CPU_MEMORY
    else:
        bare = statistics.median(bare.peak_bytes or 0 for bare, _ in pairs)
        peak = statistics.median(arm.peak_bytes or 0 for _, arm in pairs)
        row |= {"peak_bytes": int(peak), "extra_bytes": int(peak - bare)}
        row["allocations_a_step"] = statistics.median(arm.allocations or 0.0 for _, arm in pairs)
    row["tensors"], row["elements_a_step"] = pairs[-1][1].seen or (None, None)
    row["counted_by"] = pairs[-1][1].counted_by
    return row


def paired_ratios(row: dict[str, Any], bare: dict[str, Any]) -> list[float] | None:
    """A saved arm's block times over no hooks' in the same rounds; None where they cannot be told apart.

    Records before `in_rounds` tell by how many there are: all rounds, or every second one, as the slow arms.
    """
    mine, theirs = row["block_ms"], bare["block_ms"]
    every = range(0, len(theirs), 1 if len(mine) == len(theirs) else 2)
    taken = row.get("in_rounds") or every
    if len(taken) != len(mine):
        return None
    ratios = [ms / theirs[index] for index, ms in zip(taken, mine, strict=True)]
    return ratios if math.isclose(statistics.geometric_mean(ratios), row["ratio"], rel_tol=1e-6) else None


def with_intervals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Saved rows with the interval of their blocks made anew: earlier records have one that is too narrow."""
    bare = {row["model"]: row for row in rows if row["arm"] == "none" and "not_measured" not in row}
    return [row | {"interval_95": _interval(row, bare)} if "not_measured" not in row else row for row in rows]


def _interval(row: dict[str, Any], bare: dict[str, dict[str, Any]]) -> tuple[float, float] | None:
    ratios = paired_ratios(row, bare[row["model"]]) if row["model"] in bare else None
    return None if ratios is None else ratio_interval(ratios)


# Reading every byte that is observed once at 3.03 TB/s, the most an H100 reads in reports/count_kernel.md, takes 3.0 %
# of an FP32 step of GPT-2 (16.6 GB) and 7.1 % of ResNet-50's (33 GB): no observer is cheaper. Set above these before
# the capture was written: 2 and 3 points more for hooks and tables; of every tenth step a tenth of it, rounded up.
RATIO_LIMITS = {
    ("gpt2", "mpdiag_no_updates"): 1.05,
    ("resnet50", "mpdiag_no_updates"): 1.10,
    **{(model, "mpdiag_every_10"): 1.01 for model in ("resnet50", "gpt2", "bert_large")},
}
MOST_EXTRA_BYTES, MOST_EXTRA_SHARE = 64 * MIB, 0.01  # whichever is more: a job that fills its card still fits


def judged(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """The targets, set for an H100: time by the whole interval, memory by 64 MiB or 1 % of the bare peak."""
    lines = []
    for row in rows:
        if "not_measured" in row or not str(row["arm"]).startswith("mpdiag"):
            continue
        limit = RATIO_LIMITS.get((str(row["model"]), str(row["arm"])))
        if limit is not None:
            low, high = row["interval_95"] or (-math.inf, math.inf)
            verdict = "met" if high <= limit else "missed" if low > limit else "open"
            lines.append(_line(row, "step time ratio", limit, row["ratio"], verdict))
        if row["extra_bytes"] is not None:
            bytes_limit = max(MOST_EXTRA_BYTES, MOST_EXTRA_SHARE * (row["peak_bytes"] - row["extra_bytes"]))
            verdict = "met" if row["extra_bytes"] <= bytes_limit else "missed"
            lines.append(_line(row, "extra MiB", bytes_limit / MIB, row["extra_bytes"] / MIB, verdict))
    return lines


def _line(row: dict[str, object], quantity: str, limit: float, measured: object, verdict: str) -> dict[str, object]:
    which = {"model": row["model"], "arm": row["arm"], "what": row["what"], "quantity": quantity}
    return which | {"limit": limit, "measured": measured, "verdict": verdict}


HEAD = (
    f"{'model':<11} {'arm':<18}{'n':>3}{'ms':>9}{'ratio':>8}  {'95 %':<16} {'min..max':<15}"
    f"{'+MiB':>9}{'allocs':>8}{'tensors':>8}{'M elem.':>10}"
)


def show(row: dict[str, object]) -> None:
    name = f"{row['model']:<11} {row['arm'] or '':<18}"
    if "not_measured" in row:
        print(f"{name} not measured: {row['not_measured']}")
        return
    spread = "{:.3f} to {:.3f}".format(*row["interval_95"]) if row["interval_95"] else "-"
    extra = f"{row['extra_bytes'] / MIB:.1f}" if row["extra_bytes"] is not None else "-"
    calls = f"{row['allocations_a_step']:.0f}" if row["allocations_a_step"] is not None else "-"
    seen = f"{row['tensors']:>8}{row['elements_a_step'] / 1e6:>10.1f}" if row["tensors"] else f"{'-':>8}{'-':>10}"
    edges = f"{row['smallest_ratio']:.3f}..{row['largest_ratio']:.3f}"
    times = f"{row['rounds']:>3}{row['ms']:>9.1f}{row['ratio']:>8.3f}  {spread:<16} {edges:<15}"
    print(f"{name}{times}{extra:>9}{calls:>8}{seen}")
