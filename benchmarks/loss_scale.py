"""Is mpdiag's loss scale better? Eleven jobs, five policies, the same seeds and batches, against FP32.

    python benchmarks/loss_scale.py [OUT.json] [--jobs cnn,gpt] [--policies mpdiag,default] [--steps N] [--seeds 0,1]
                                    [--workers N] [--seconds S] [--small] [--keep]

- Each run trains under FP16 autocast (on a CPU by the emulated CUDA policy, small jobs: a test of this program, no
  evidence) in mpdiag's own training loop with the policy's GradScaler, or none. Policies: loss_scale_policies.py.
- A step is skipped when an optimizer was not stepped. Settled: the first step from which on the scale stays within a
  factor of 2. Final loss: mean of the last 50 steps.
- Share lost: at a few steps of the FP32 run its weights are kept; there each policy's scale of that step is tried with
  the batch of that step. Of the elements that are not zero in FP32 (outputs of leaf modules and parameters, element by
  element), those that are zero in FP16; `energy_lost` is their share of the squared norm. All policies are judged on
  the same weights, by counts that are not mpdiag's own. Where the gradients overflow, the step is lost: `overflows`
  counts it, and means are taken twice, without it and with all of it lost.
- Jobs run in --workers processes at a time; no time is measured here. Runs that --seconds left no room for are named
  in `cut`. The JSON is written whenever a job's seed is done. --keep: rows already in OUT stay unless made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from loss_scale_jobs import JOBS
from loss_scale_policies import POLICIES
from loss_scale_reach import reach
from loss_scale_runs import FP32, Row, Task, measure
from made_on import origin


def mean_lost(row: Row, what: str) -> float | None:
    values = [point[what] for point in row.get("lost", []) if what in point]
    return statistics.fmean(values) if values else None


def show(row: Row, rows: list[Row]) -> None:
    fp32 = next((r for r in rows if r["policy"] == FP32 and (r["job"], r["seed"]) == (row["job"], row["seed"])), None)
    share, energy = mean_lost(row, "share_lost"), mean_lost(row, "energy_lost")
    over = sum("overflowed" in point for point in row.get("lost", []))
    loss = "not finite" if row["final_loss"] is None else f"{row['final_loss']:.4g}"
    against = "" if fp32 is None or fp32["final_loss"] is None else f"{fp32['final_loss']:.4g}"
    print(
        f"{row['job']:<15}{row['seed']:>2} {row['policy']:<9}{row['first_log2_scale']:>6.1f}"
        f"{row['final_log2_scale']:>7.1f}{row['skipped']:>6}{row['skipped_after_first']:>6}{row['settled']:>7}"
        f"{'' if share is None else f'{share:.2e}':>11}{'' if energy is None else f'{energy:.1e}':>10}{over:>4}"
        f"{loss:>12}{against:>11}{row['seconds']:>7.1f}",
        flush=True,
    )


HEAD = (
    f"{'job':<15}{'s':>2} {'policy':<9}{'first':>6}{'final':>7}{'skips':>6}{'>0':>6}{'settle':>7}{'share lost':>11}"
    f"{'energy':>10}{'inf':>4}{'loss':>12}{'FP32':>11}{'s':>7}"
)


def record_of(rows: list[Row], cut: list[str], device: torch.device, steps: int) -> Row:
    order = {name: index for index, name in enumerate((*JOBS, FP32, *POLICIES))}
    rows = sorted(rows, key=lambda row: (order[row["job"]], row["seed"], order[row["policy"]]))
    return {
        **origin("python benchmarks/loss_scale.py", device),
        "steps": steps,
        "jobs": {name: (JOBS[name].__doc__ or "").rstrip(".") for name in JOBS},
        "policies": {name: (POLICIES[name].__doc__ or "").rstrip(".") for name in POLICIES},
        "rows": rows,
        "cut": sorted(cut),
    }


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--steps", type=int, default=2000 if cuda else 200)
    parser.add_argument("--seeds", default="3,4,5" if cuda else "0")
    parser.add_argument("--workers", type=int, default=8 * torch.cuda.device_count() or 2)
    parser.add_argument("--seconds", type=float, default=400 if cuda else 3600)
    parser.add_argument("--small", action="store_true", default=not cuda)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    jobs, policies = arguments.jobs.split(","), tuple(arguments.policies.split(","))
    if unknown := [name for name in jobs if name not in JOBS] + [name for name in policies if name not in POLICIES]:
        parser.error(f"unknown: {', '.join(unknown)}; jobs: {', '.join(JOBS)}; policies: {', '.join(POLICIES)}")
    began = time.time()
    threads = max(1, (os.cpu_count() or 1) // arguments.workers)
    common = (policies, arguments.steps, arguments.small, began + arguments.seconds, threads)
    pairs = [(job, int(seed)) for seed in arguments.seeds.split(",") for job in jobs]
    tasks = [Task(place, job, seed, *common) for place, (job, seed) in enumerate(pairs)]
    rows: list[Row] = []
    if arguments.keep and arguments.out and arguments.out.exists():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    cut: list[str] = []
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    print(HEAD)
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        pending = {pool.submit(measure, task): task for task in tasks}
        for done in as_completed(pending):
            task = pending[done]
            try:
                made, left = done.result()
            except Exception as error:  # a job that breaks is said, and the others go on
                made, left = [], [f"{task.job} {task.seed}: {type(error).__name__}: {str(error)[:200]}"]
                print(left[0], flush=True)
            fresh = {(row["job"], row["seed"], row["policy"]) for row in made}
            rows = [row for row in rows if (row["job"], row["seed"], row["policy"]) not in fresh] + made
            cut += left
            for row in made:
                show(row, made)
            record = record_of(rows, cut, device, arguments.steps)
            if arguments.out:  # whenever a job's seed is done, so that a run cut short leaves what it measured
                arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for line in reach(rows):
        measured = "without bound" if line["measured"] is None else f"{line['measured']:.3g}"
        print(f"{line['what']}: {measured}, limit {line['limit']}: {'met' if line['met'] else 'missed'}")
        for miss in line["misses"][:12]:
            print(f"    {miss}")
    for name in record["cut"]:
        print(f"cut: {name}")
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
