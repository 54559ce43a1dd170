"""The runs of benchmarks/loss_scale.py: one job and seed in FP32 and under every policy, and what each loses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from loss_scale_jobs import BATCHES, JOBS
from loss_scale_policies import POLICIES, Subject
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
