"""What a job is, for the record."""

from __future__ import annotations

import torch

from mpdiag.diagnosis import TargetRecord
from mpdiag.target.batches import samples_in
from mpdiag.target.job import Job, Start
from mpdiag.target.user_code import guarded


def target_record(job: Job, start: Start) -> TargetRecord:
    """The record of a job: its size, its optimizer, its batches. Raises UserCodeError where building one fails."""
    model = job.build(start, torch.device("cpu"))
    with guarded("building the optimizer"):
        optimizers = job.build_optimizers(model)
    return TargetRecord(
        name=job.name,
        source=job.source,
        parameters=sum(p.numel() for p in model.parameters()),
        synthetic_data=job.synthetic_data,
        optimizer=", ".join(_described(optimizer) for optimizer in optimizers.values()),
        batches=len(start.batches),
        samples_per_step=samples_in(start.batch(0)),
        metric=None if job.evaluate is None else "evaluate(model)",
        higher_is_better=job.higher_is_better,
        notes=job.notes,
    )


def _described(optimizer: torch.optim.Optimizer) -> str:
    rate = optimizer.param_groups[0].get("lr")
    return f"{type(optimizer).__name__}(lr={float(rate):g})" if rate is not None else type(optimizer).__name__
