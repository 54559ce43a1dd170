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
  the same weights, by counts that are not mpdiag's own. Where the gradients overflow, nothing is lost but the step: it
  is left out, and `overflows` counts it.
- Jobs run in --workers processes at a time; no time is measured here. Runs that --seconds left no room for are named
  in `cut`. The JSON is written whenever a job's seed is done. --keep: rows already in OUT stay unless made anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from loss_scale_jobs import BATCHES, JOBS
from loss_scale_policies import POLICIES, Subject
from loss_scale_reach import reach

from mpdiag.device.environment import describe
from mpdiag.target import Job, Start
from mpdiag.target.batches import map_tensors
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.training.session import Session, open_session

FP16 = Precision("FP16 autocast", torch.float16, ieee=True)
FP32 = "fp32"
CHECKPOINTS = (0, 100, 500, 1000, 1999)
LAST = 50
NAMED = 20  # skipped steps

Row = dict[str, Any]
Region = Callable[[], AbstractContextManager[Any]]
Weights = dict[str, torch.Tensor]


@dataclass
class Trace:
    """What a run did. scales: of each step as it began, then the last; kept: weights before the steps asked for."""

    losses: list[torch.Tensor] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    kept: dict[int, Weights] = field(default_factory=dict)


def train(run: Session, start: Start, steps: int, keep: Sequence[int] = ()) -> Trace:
    trace, stepped = Trace(), [0]

    def count(*_: Any) -> None:
        stepped[0] += 1

    handles = [o.register_step_post_hook(count) for o in run.optimizers.values()]
    scales: list[torch.Tensor] = []  # read at the end: a look at each step would wait for the GPU
    for step in range(steps):
        if step in keep:
            trace.kept[step] = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
        stepped[0] = 0
        scales.append(scale_of(run))
        losses = run.step(run.place(start.batch(step)))
        trace.losses.append(torch.stack([loss.float() for loss in losses.values()]).sum())
        if stepped[0] < len(run.optimizers):
            trace.skipped.append(step)
    trace.scales = torch.stack([*scales, scale_of(run)]).tolist()
    for handle in handles:
        handle.remove()
    return trace


def scale_of(run: Session) -> torch.Tensor:
    """The loss scale as a number on the device; 1 without a scaler."""
    if run.scaler is None:
        return torch.ones((), device=run.device)
    return run.scaler.scale(torch.ones((), device=run.device))


def gradients(run: Session, batch: Any, region: Region, scale: float) -> dict[Any, torch.Tensor]:
    """The gradients of every leaf module's outputs and of every parameter, still scaled; nothing is stepped."""
    found: dict[Any, torch.Tensor] = {}
    calls: dict[str, int] = {}

    def watch(name: str, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad and not tensor.is_leaf:
                place = (name, calls.get(name, 0))
                calls[name] = place[1] + 1
                tensor.register_hook(lambda gradient, place=place: found.__setitem__(place, gradient))

    leaves = [(name, module) for name, module in run.model.named_modules() if not any(True for _ in module.children())]
    hooks = [m.register_forward_hook(lambda _m, _i, out, name=name: watch(name, out)) for name, m in leaves]
    parts = iter(run.job.losses(run.model, run.place(batch)))
    while True:
        with region():
            part = next(parts, None)
        if part is None:
            break
        run.model.zero_grad(set_to_none=True)
        (part[1] * scale).backward()
        for name, parameter in run.model.named_parameters():
            if parameter.grad is not None:
                found[part[0], "gradient of", name] = parameter.grad
    run.model.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    return found


def lost(fp32: dict[Any, torch.Tensor], fp16: dict[Any, torch.Tensor]) -> Row:
    """Of what is not zero in FP32, the shares (of elements, of the squared norm) that are zero in FP16."""
    sums, finite = [], []
    for key, wide in fp32.items():
        narrow = fp16[key]
        gone = (narrow == 0) & (wide != 0)
        energy = wide.double().square()
        sums.append(torch.stack([gone.sum().double(), (wide != 0).sum().double(), (energy * gone).sum(), energy.sum()]))
        finite.append(torch.isfinite(narrow).all())
    if not bool(torch.stack(finite).all()):
        first = next(key for key, ok in zip(fp32, torch.stack(finite).tolist(), strict=True) if not ok)
        return {"overflowed": " ".join(str(part) for part in first)}
    zeroed, counted, energy_gone, energy_all = torch.stack(sums).sum(0).tolist()
    return {"share_lost": zeroed / max(counted, 1), "energy_lost": energy_gone / max(energy_all, 1e-300)}


def share_lost(
    job: Job, start: Start, device: torch.device, kept: dict[int, Weights], scales: dict[str, list[float]]
) -> dict[str, list[Row]]:
    """By policy, at each step of `kept`, what its scale of that step loses on those weights."""
    rows: dict[str, list[Row]] = {policy: [] for policy in scales}
    with open_session(job, start, FP16, device) as run:
        for step, weights in kept.items():
            run.model.load_state_dict(weights)
            fp32 = gradients(run, start.batch(step), nullcontext, 1.0)
            seen: dict[float, Row] = {}
            for policy, trace in scales.items():
                scale = trace[step]
                if scale not in seen:
                    seen[scale] = lost(fp32, gradients(run, start.batch(step), run.region, scale))
                rows[policy].append({"step": step, "log2_scale": math.log2(scale), **seen[scale]})
    return rows


def first_gradient(job: Job, start: Start, device: torch.device) -> float:
    with open_session(job, start, FP32_IEEE, device) as run:
        found = gradients(run, start.batch(0), nullcontext, 1.0)
        return max(float(g.abs().max()) for key, g in found.items() if "gradient of" in key)


def settled(scales: Sequence[float]) -> int:
    """The first step from which on the scales stay within a factor of 2."""
    low = high = scales[-1]
    for step in range(len(scales) - 1, -1, -1):
        low, high = min(low, scales[step]), max(high, scales[step])
        if high > 2 * low:
            return step + 1
    return 0


def row_of(trace: Trace) -> Row:
    losses = torch.stack(trace.losses).tolist()
    tail = losses[-min(LAST, len(losses)) :]
    changes = [0, *(i for i in range(1, len(trace.scales)) if trace.scales[i] != trace.scales[i - 1])]
    return {
        "first_loss": losses[0],
        "final_loss": sum(tail) / len(tail) if all(map(math.isfinite, tail)) else None,
        "nonfinite_losses": sum(not math.isfinite(v) for v in losses),
        "skipped": len(trace.skipped),
        "skipped_at": trace.skipped[:NAMED],
        "skipped_after_first": sum(step > 0 for step in trace.skipped),
        "settled": settled(trace.scales),
        "first_log2_scale": math.log2(trace.scales[0]),
        "final_log2_scale": math.log2(trace.scales[-1]),
        "log2_scales": [[i, round(math.log2(trace.scales[i]), 3)] for i in changes[:: 1 + len(changes) // 50]],
    }


@dataclass(frozen=True)
class Task:
    """One job and seed: the FP32 run and every policy's; place counts the tasks, so that all GPUs are used."""

    place: int
    job: str
    seed: int
    policies: tuple[str, ...]
    steps: int
    small: bool
    deadline: float
    threads: int


def measure(task: Task) -> tuple[list[Row], list[str]]:
    """Rows, and what was cut."""
    torch.set_num_threads(task.threads)
    gpus = torch.cuda.device_count()
    device = torch.device("cuda", task.place % gpus) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    who = {"job": task.job, "seed": task.seed, "steps": task.steps}
    cut = [f"{task.job} {task.seed} {name}" for name in (FP32, *task.policies)]
    if time.time() > task.deadline:
        return [], cut
    job = JOBS[task.job](task.small)
    job.name = task.job
    start = job.start(task.seed, BATCHES)
    start = replace(start, batches=[map_tensors(lambda t: t.to(device), batch) for batch in start.batches])
    began = time.time()
    with open_session(job, start, FP32_IEEE, device) as run:
        points = sorted({min(step, task.steps - 1) for step in CHECKPOINTS})
        reference = train(run, start, task.steps, points)
    rows = [{**who, "policy": FP32, **row_of(reference), "seconds": time.time() - began}]
    cut.pop(0)
    largest = first_gradient(job, start, device)
    scales: dict[str, list[float]] = {}
    for name in task.policies:
        began = time.time()
        if began > task.deadline:
            break
        subject = Subject(job, start, device, largest)
        scaler = POLICIES[name](subject)
        with open_session(job, start, FP16, device) as run:
            run.scaler = scaler
            trace = train(run, start, task.steps)
        scales[name] = trace.scales
        advice = {"advice": subject.notes} if subject.notes else {}
        rows.append({**who, "policy": name, **row_of(trace), **advice, "seconds": time.time() - began})
        cut.pop(0)
    for name, points_lost in share_lost(job, start, device, reference.kept, scales).items():
        next(row for row in rows if row["policy"] == name)["lost"] = points_lost
    rows[0]["largest_first_gradient"] = largest
    return rows, cut


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
        "command": "python benchmarks/loss_scale.py",
        "environment": vars(describe(device)),
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
