"""Running one arm: losses, metric and skipped steps anywhere; time, memory, tensor cores and energy on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch

from mpdiag.device.nvml import Nvml, Reading
from mpdiag.device.stopwatch import peak_memory_bytes, release_memory, time_steps
from mpdiag.diagnosis import Trial
from mpdiag.errors import MpdiagError
from mpdiag.settings import STEADY_SECONDS, WARMUP_STEPS
from mpdiag.target import Job, Start
from mpdiag.target.batches import samples_in
from mpdiag.training.precision import emulated
from mpdiag.training.session import Session, open_session, total
from mpdiag.verify.arms import BASELINE, Arm

ON_DEVICE_BATCHES = 8  # distinct batches rotated through a timed run; more would only fill memory

_COSTS = ("peak_memory_bytes", "step_time_ms", "tensor_core", "energy_joules_per_sample")
_NEEDS_GPU = "needs a CUDA GPU; this run was on the CPU"
_COSTS_ONCE = "costs are measured once an arm, with the first seed"


def train_arm(
    job: Job, arm: Arm, start: Start, steps: int, device: torch.device, on_step: Callable[[], None] = lambda: None
) -> Trial:
    """Train one arm from a start and record its losses, scale, skipped steps and metric.

    What the user's code raises under this precision is the trial's `error`; the losses until then are kept. What it
    raises in the baseline is raised here: that is a fault of the job, not of mixed precision.
    """
    losses: list[float] = []
    scales: list[float] = []
    metric, error = None, None
    reasons = dict.fromkeys(_COSTS, _NEEDS_GPU if device.type != "cuda" else _COSTS_ONCE)
    try:
        with open_session(job, start, arm.precision, device) as run:
            for step in range(steps):
                losses.append(total(run.step(run.place(start.batch(step)))))
                if run.scaler is not None:
                    scales.append(math.log2(run.scaler.get_scale() or 2.0**-149))
                on_step()
            if job.evaluate is None:
                reasons["metric"] = "the target defines no evaluate(model)"
            else:
                try:
                    metric = run.evaluate()
                except MpdiagError as failure:
                    if arm.name == BASELINE:
                        raise
                    reasons["metric"] = failure.message  # the training itself went well, so its losses still count
    except MpdiagError as failure:
        if arm.name == BASELINE:
            raise
        error = failure.message
        reasons["metric"] = "the run failed"
    first = arm.precision.log2_scale
    skipped = None
    if arm.precision.log2_scale is not None:
        before = [float(first or 0), *scales]
        skipped = sum(later < earlier for earlier, later in zip(before, scales, strict=False))
    else:
        reasons["skipped_steps"] = reasons["final_log2_scale"] = "does not apply: this arm trains without a loss scale"
    return Trial(
        arm=arm.name,
        precision=arm.precision.name,
        emulated=emulated(arm.precision, device),
        seed=start.seed,
        steps=len(losses),
        losses=tuple(losses),
        metric=metric,
        skipped_steps=skipped,
        loss_scales_log2=tuple(scales) if first is not None else None,
        final_log2_scale=scales[-1] if scales else None,
        error=error,
        not_measured=reasons,
    )


def measure_costs(job: Job, arm: Arm, start: Start, device: torch.device, trial: Trial, nvml: Nvml) -> Trial:
    """The trial with peak memory, step time, pipe activity and energy of a steady run on a CUDA device.

    A model of its own, batches already on the device, no hooks, no reading of the loss. The steps a GradScaler skips
    at the start are over before the clock runs.
    """
    release_memory()
    try:
        with open_session(job, start, arm.precision, device) as run:
            placed = [run.place(batch) for batch in islice(start.batches, ON_DEVICE_BATCHES)]
            batches = cycle(placed)

            def step() -> None:
                run.step(next(batches))

            for _ in range(WARMUP_STEPS):
                step()
            peak = peak_memory_bytes(step, device)
            others = nvml.others()
            before = _scale(run)
            with nvml.window() as reading:
                times = time_steps(step, STEADY_SECONDS)
            return _with_costs(trial, peak, times, reading, others, samples_in(placed[0]), _scale(run) < before)
    except MpdiagError as failure:
        return replace(trial, not_measured={**trial.not_measured, **dict.fromkeys(_COSTS, failure.message)})


def _scale(run: Session) -> float:
    return 1.0 if run.scaler is None else run.scaler.get_scale()


def _with_costs(
    trial: Trial, peak: int, times: Any, reading: Reading, others: list[int], samples: int | None, skipped: bool
) -> Trial:
    reasons = {k: v for k, v in trial.not_measured.items() if k not in _COSTS}
    energy = tensor = None
    if others:
        shared = f"{len(others)} other process(es) used this GPU meanwhile"
        reasons["energy_joules_per_sample"] = reasons["tensor_core"] = shared
    else:
        tensor = reading.gpm
        if tensor is None:
            reasons["tensor_core"] = reading.reasons.get("tensor_core", "GPM gave no value")
        if reading.energy_joules is not None and samples:
            energy = reading.energy_joules / (times.steps * samples)
        else:
            reasons["energy_joules_per_sample"] = reading.reasons.get("energy", "the batch size is not known")
    if skipped:
        reasons["step_time_note"] = "steps were skipped while timing; a skipped step is shorter"
    return replace(
        trial,
        peak_memory_bytes=peak,
        step_time_ms=times.median_ms,
        step_time_iqr_ms=times.iqr_ms,
        timed_steps=times.steps,
        tensor_core=tensor,
        energy_joules_per_sample=energy,
        not_measured=reasons,
    )
