"""From blocks of benchmarks/capture.py to rows: ratios with their interval, memory, and the verdict on the targets."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass

MIB = 2**20
RESAMPLES = 4000
NO_CPU_MEMORY = "torch keeps no peak of CPU memory"


@dataclass(frozen=True)
class Block:
    """One block of one arm. Memory and allocations are None on a CPU."""

    ms: float
    peak_bytes: int | None
    allocations: float | None
    seen: tuple[int, int] | None
    counted_by: str | None


def interval(ratios: list[float]) -> list[float] | None:
    """Bootstrap 95 % interval of the geometric mean; None from fewer than three rounds."""
    if len(ratios) < 3:
        return None
    draw = random.Random(0)
    means = [statistics.geometric_mean(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)]
    cuts = statistics.quantiles(means, n=40)
    return [cuts[0], cuts[-1]]


def summarized(name: str, rounds: list[dict[str, Block]]) -> dict[str, object]:
    """An arm's blocks against the no-hooks blocks of the same rounds."""
    pairs = [(blocks["none"], blocks[name]) for blocks in rounds if name in blocks]
    ratios = [arm.ms / bare.ms for bare, arm in pairs]
    row: dict[str, object] = {
        "rounds": len(pairs),
        "block_ms": [arm.ms for _, arm in pairs],
        "ms": statistics.median(arm.ms for _, arm in pairs),
        "ratio": statistics.geometric_mean(ratios),
        "interval_95": interval(ratios),
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


RATIO_LIMITS = {
    ("gpt2", "mpdiag_no_updates"): 1.05,
    ("resnet50", "mpdiag_no_updates"): 1.10,
    **{(model, "mpdiag_every_10"): 1.01 for model in ("resnet50", "gpt2", "bert_large")},
}


def judged(rows: list[dict[str, object]]) -> list[dict[str, object]]:
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
            bytes_limit = max(64 * MIB, 0.01 * (row["peak_bytes"] - row["extra_bytes"]))
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
