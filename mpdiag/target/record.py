"""What a job is, for the record."""

from __future__ import annotations

import torch

from mpdiag.diagnosis import TargetRecord
from mpdiag.errors import UsageError
from mpdiag.target.batches import samples_in
from mpdiag.target.job import Job, Start


def target_record(job: Job, start: Start) -> TargetRecord:
    """The record of a job: its size, its optimizer, its batches. Raises UserCodeError where building one fails."""
    model = job.build(start, torch.device("cpu"))
    optimizers = job.optimizers(model)
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
        start_from=None if job.checkpoint is None else job.checkpoint.path,
    )


def typed_target(record: TargetRecord) -> str:
    """What was typed to scan a job, from its record: a file or module, with the attribute if one was named."""
    attribute = record.name.partition(":")[2]
    return f"{record.source}:{attribute}" if attribute else record.source


def what_changed(before: TargetRecord, now: TargetRecord) -> tuple[str, ...]:
    """Notes on how a job differs from when it was scanned. Raises UsageError `target-changed` for another model."""
    if now.parameters != before.parameters:
        raise UsageError(
            "target-changed",
            f"{before.source}: the model has {now.parameters:,} parameters, the scan saw {before.parameters:,}",
            "scan it again: what was captured is another model's",
        )
    pairs = (
        ("optimizer", before.optimizer, now.optimizer),
        ("batch size", before.samples_per_step, now.samples_per_step),
    )
    return tuple(f"verified with {what} {new}, scanned with {old}" for what, old, new in pairs if old != new)


def _described(optimizer: torch.optim.Optimizer) -> str:
    rate = optimizer.param_groups[0].get("lr")
    return f"{type(optimizer).__name__}(lr={float(rate):g})" if rate is not None else type(optimizer).__name__
