"""Peak memory of each arm in a fresh process: what it reaches, what it consists of, where in the step it lies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from mpdiag.costs.memory import MemoryUse, from_reply
from mpdiag.device.memory import CudaAllocator, NoHistoryError, Peaks, allocator_settings
from mpdiag.errors import MpdiagError, safe_text
from mpdiag.measure.again import (
    LEAST_SECONDS,
    MOST_SKIPS,
    Again,
    cannot_start_again,
    open_again,
    request_for,
    steps_watched,
)
from mpdiag.measure.child import Child, Reply
from mpdiag.measure.memory_record import record_step
from mpdiag.measure.memory_split import HistoryMismatchError
from mpdiag.measure.steady import SteadyRun, steady_run
from mpdiag.target import Job
from mpdiag.training.precision import Precision

WARM_STEPS = 3  # the first takes cuBLAS's workspaces and the optimizer's state, the second the gradients' places
MEASURED_STEPS = 3
SHARED_PART = 0.8  # of what is free, for processes side by side: cuDNN takes larger workspaces where it finds room
CONTEXT_BYTES = 2**30  # of a process on an H100 beside its tensors: context, cuBLAS, cuDNN (0.5 to 0.7 GB), and room

STOPPED = "the verification was stopped"

TASK = "mpdiag.measure.memory:measure_memory"

Report = Callable[[str], None]


def memory_of_arms(
    job: Job,
    arms: dict[str, Precision],
    seed: int,
    device: torch.device,
    seconds: float,
    samples: int | None = None,
    report: Report = lambda line: None,
    expected_bytes: int | None = None,
    stopped: threading.Event | None = None,
) -> dict[str, MemoryUse]:
    """The memory of every arm, each in a process of its own, within about `seconds` in all.

    They run side by side, as many as `expected_bytes` an arm says fit; where that is not known the first runs alone and
    tells. samples: the batch size, None for the job's own. What could not be measured has its reason in the record.
    stopped: once it is set, no further process begins; those at work are for `end_children`.
    """
    stopped = stopped or threading.Event()
    reason = cannot_start_again(job, device)
    if reason is not None:
        return {name: MemoryUse.absent(name, precision.name, reason) for name, precision in arms.items()}
    until = time.monotonic() + seconds
    found: dict[str, MemoryUse] = {}
    names = list(arms)
    while names:
        taken = names[: _side_by_side(found, device, expected_bytes)]
        left = until - time.monotonic()
        if stopped.is_set() or left < LEAST_SECONDS:
            taken = names
            needs = f"an arm takes at least {LEAST_SECONDS:.0f} s, the time budget had {max(left, 0):.0f} s left for it"
            why = STOPPED if stopped.is_set() else needs
            replies = [Reply(None, why)] * len(taken)
        else:
            report(f"memory of {', '.join(taken)}")
            requests = [request_for(job, arms[name], seed, device, samples) for name in taken]
            replies = run_side_by_side(requests, left, TASK, stopped)
        for name, reply in zip(taken, replies, strict=True):
            found[name] = _record(name, arms[name], reply)
        names = names[len(taken) :]
    return found


def run_side_by_side(
    requests: list[dict[str, Any]], seconds: float, task: str, stopped: threading.Event | None = None
) -> list[Reply]:
    """Children at work at the same time; all end with this call, whatever ends it, also `stopped` while they begin."""
    children: list[Child] = []
    try:
        for request in requests:
            children.append(Child(task, request, seconds))
            if stopped is not None and stopped.is_set():
                children[-1].end()  # whoever set it has ended those that were there by then
        with ThreadPoolExecutor(len(children)) as pool:
            return list(pool.map(Child.reply, children))
    except BaseException:
        for child in children:
            child.end()
        raise


def _side_by_side(found: dict[str, MemoryUse], device: torch.device, expected_bytes: int | None) -> int:
    """How many of the next arms fit together; what no peak is known for goes alone."""
    peaks = [use.peak_reserved_bytes for use in found.values() if use.peak_reserved_bytes]
    peaks += [expected_bytes] if expected_bytes else []
    if not peaks:
        return 1
    free, _ = CudaAllocator(device).card()
    return max(1, int(SHARED_PART * free / (max(peaks) + CONTEXT_BYTES)))


def _record(name: str, precision: Precision, reply: Reply) -> MemoryUse:
    if reply.value is None:
        return MemoryUse.absent(name, precision.name, reply.reason or "no reason was given")
    return from_reply(name, reply.value)


def measure_memory(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side: a MemoryUse without its arm, as JSON carries it."""
    again = open_again(request)
    return measured(again, CudaAllocator(again.device))


def measured(again: Again, allocator: Any) -> dict[str, Any]:
    """Warm up, measure the peaks, then record one more step. allocator: CudaAllocator, or what acts like one."""
    with steady_run(again.job, again.start, again.precision, again.device, WARM_STEPS) as run:
        notes = _until_stepped(run)
        peaks, retries = _peaks(run, allocator)
        found: dict[str, Any] = {
            "precision": again.precision.name,
            "peak_allocated_bytes": peaks.allocated_bytes,
            "peak_reserved_bytes": peaks.reserved_bytes,
            "alloc_retries": retries,
            "samples": run.samples,
            "parameters": sum(p.numel() for p in run.session.model.parameters()),
            "allocator_settings": allocator_settings(),
            "notes": notes,
            **_driver(allocator),
        }
        return found | _split(run, allocator)


def _until_stepped(run: SteadyRun) -> list[str]:
    """Go on until every optimizer has made a step: one whose every step was skipped has no state yet."""
    with steps_watched(run.session) as stepped, run.in_force_again() as step:
        for _ in range(MOST_SKIPS):
            step()
            if stepped():
                return []
    return [f"the GradScaler skipped every one of {MOST_SKIPS} steps: what the optimizer needs is not in these figures"]


def _peaks(run: SteadyRun, allocator: Any) -> tuple[Peaks, int]:
    allocator.synchronize()
    before = allocator.peaks()
    allocator.reset_peaks()
    with run.in_force_again() as step:
        for _ in range(MEASURED_STEPS):
            step()
    allocator.synchronize()
    peaks = allocator.peaks()
    return peaks, peaks.alloc_retries - before.alloc_retries


def _driver(allocator: Any) -> dict[str, Any]:
    used, reason = allocator.driver_bytes()
    return {"driver_bytes": used, "driver_reason": reason}


def _split(run: SteadyRun, allocator: Any) -> dict[str, Any]:
    """The recorded step; whatever goes wrong there is a reason, for the peak itself is measured already."""
    try:
        recorded = record_step(run, allocator)
    except (NoHistoryError, HistoryMismatchError) as error:
        return {"split_reason": str(error)}
    except MpdiagError as error:
        return {"split_reason": f"the recorded step failed: {error.message}"}
    except Exception as error:  # private interfaces of torch: anything may come of a version not tested with
        return {"split_reason": f"the step could not be recorded: {type(error).__name__}: {safe_text(error)}"}
    return {
        "split": asdict(recorded.at_peak.split),
        "recorded_peak_bytes": recorded.peak_bytes,
        "peak_phase": recorded.at_peak.phase,
        "peak_near": recorded.at_peak.near,
    }
