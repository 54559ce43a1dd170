"""Our counting on a CPU against torch.bincount of the exponent bits, interleaved in one process.

    python benchmarks/count_on_cpu.py [OUT.json] [--pairs N]

Ours: `CountTable.add`, which also finds the largest and smallest magnitude and tells zeros, subnormals, infs and NaNs
apart. Theirs: `torch.bincount((x.view(torch.int32) >> 23) & 255, minlength=256)` alone. Each pair times one burst of
either, in random order, a burst being calls for at least 4 ms; the ratio (ours over theirs, in elements a second) is
the median of the pairs' ratios. Target: 2x or more at every size and input.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mpdiag.capture.counting import CountTable
from mpdiag.device.environment import describe

CPU = torch.device("cpu")
SIZES = tuple(2**k for k in range(12, 25, 2))
TARGET = 2.0
BURST_S = 0.004
INPUTS: dict[str, Callable[[int], torch.Tensor]] = {
    "normal": lambda n: torch.randn(n),
    "relu": lambda n: torch.randn(n).relu_(),
    "wide": lambda n: torch.randn(n).mul_(torch.randn(n).mul_(9).exp2_()),
}


def burst_s(body: Callable[[], object], calls: int) -> float:
    """Seconds a call."""
    began = time.perf_counter()
    for _ in range(calls):
        body()
    return (time.perf_counter() - began) / calls


def compare(kind: str, size: int, pairs: int, order: random.Random) -> dict[str, object]:
    values, table = INPUTS[kind](size), CountTable(CPU)
    bodies: dict[str, Callable[[], object]] = {
        "ours": lambda: table.add(0, values),
        "bincount": lambda: torch.bincount((values.view(torch.int32) >> 23) & 255, minlength=256),
    }
    calls = {}
    for name, body in bodies.items():
        burst_s(body, 2)
        calls[name] = max(1, round(BURST_S / burst_s(body, 2)))
    times: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(pairs):
        for name in order.sample(list(bodies), 2):
            times[name].append(burst_s(bodies[name], calls[name]))
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["bincount"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "elements": size,
        "input": kind,
        "ours_elements_s": size / statistics.median(times["ours"]),
        "bincount_elements_s": size / statistics.median(times["bincount"]),
        "ratio": quartiles[1],
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
        "met": quartiles[1] >= TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--pairs", type=int, default=21)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    order, rows = random.Random(0), []
    print(f"{'elements':>10} {'input':<8}{'ours M/s':>10}{'bincount M/s':>14}{'ratio':>8}   quartiles")
    for size in SIZES:
        for kind in INPUTS:
            row = compare(kind, size, arguments.pairs, order)
            rows.append(row)
            ours, theirs = row["ours_elements_s"] / 1e6, row["bincount_elements_s"] / 1e6
            low, high = row["ratio_quartiles"]
            print(f"{size:>10} {kind:<8}{ours:>10.0f}{theirs:>14.0f}{row['ratio']:>8.2f}   {low:.2f} to {high:.2f}")
    met = sum(bool(row["met"]) for row in rows)
    print(f"{met} of {len(rows)} at {TARGET:g}x or more, {torch.get_num_threads()} threads")
    record = {
        "command": "python benchmarks/count_on_cpu.py",
        "environment": vars(describe(CPU)),
        "pairs": arguments.pairs,
        "target_ratio": TARGET,
        "rows": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
