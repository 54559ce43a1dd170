"""Running one arm: its losses, metric, loss scales and skipped steps. What it costs is measured apart (measure/)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from mpdiag.arm_names import BASELINE
from mpdiag.costs.gpu import ON_THE_CPU
from mpdiag.diagnosis import Trial
from mpdiag.errors import MpdiagError
from mpdiag.target import Job, Start
from mpdiag.target.metrics import NO_METRIC
from mpdiag.training.precision import emulated
from mpdiag.training.session import open_session, total
from mpdiag.verify.arms import Arm
from mpdiag.verify.cost_ratios import ENERGY, PEAK_MEMORY, STEP_TIME, TENSOR_CORE
from mpdiag.verify.what_overflowed import first_overflow

_COSTS = (PEAK_MEMORY, STEP_TIME, TENSOR_CORE, ENERGY)
_NO_EVALUATE = "the target defines no evaluate(model)"
_COSTS_ONCE = "costs are measured once an arm, with the first seed"


def train_arm(
    job: Job, arm: Arm, start: Start, steps: int, device: torch.device, on_step: Callable[[], None] = lambda: None
) -> Trial:
    """Train one arm from a start and record its losses, scale, skipped steps and metric.

    What the user's code raises under this precision is the trial's `error`; the losses until then are kept. What it
    raises in the baseline is raised here: that is a fault of the job, not of mixed precision. What evaluate() alone
    raises is the reason of a metric that was not measured.
    """
    losses: list[float] = []
    scales: list[float] = []
    metric, error, overflow = None, None, None
    told = arm.precision.autocast is not None and not arm.control  # a control breaks by design
    reasons = dict.fromkeys(_COSTS, ON_THE_CPU if device.type != "cuda" else _COSTS_ONCE)
    try:
        with open_session(job, start, arm.precision, device) as run:
            for step in range(steps):
                batch = run.place(start.batch(step))
                losses.append(total(run.step(batch)))
                if told and overflow is None and not math.isfinite(losses[-1]):
                    overflow = first_overflow(run, batch, step + 1)
                del batch  # the next one is to take its place
                if run.scaler is not None:
                    scales.append(math.log2(run.scaler.get_scale() or 2.0**-149))
                on_step()
            if job.evaluate is None:
                reasons["metric"] = _NO_EVALUATE
            else:
                try:
                    metric = run.evaluate() or None  # a dict without an entry is no metric
                    if metric is None:
                        reasons["metric"] = NO_METRIC
                except MpdiagError as failure:
                    if arm.name == BASELINE:
                        raise
                    reasons["metric"] = failure.placed  # the training itself went well, so its losses still count
    except MpdiagError as failure:
        if arm.name == BASELINE or failure.slug == "out-of-memory":  # which says nothing about the precision
            raise
        error = failure.placed
        reasons["metric"] = _NO_EVALUATE if job.evaluate is None else "the run failed"
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
        overflow=overflow,
    )
