"""What a job is, for the record."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from mpdiag.diagnosis import TargetRecord
from mpdiag.errors import UsageError
from mpdiag.target.batches import batch_notes, samples_in
from mpdiag.target.fingerprint import batch_hash
from mpdiag.target.job import Job, Start


def target_record(job: Job, start: Start) -> TargetRecord:
    """The record of a job: its size, its optimizer, its batches. Raises UserCodeError where building one fails."""
    first = start.batch(0)
    model = job.build(start, torch.device("cpu"))
    optimizers = job.optimizers(model)
    return TargetRecord(
        name=job.name,
        source=job.source,
        parameters=sum(p.numel() for p in model.parameters()),
        synthetic_data=job.synthetic_data,
        optimizer=", ".join(_described(optimizer) for optimizer in optimizers.values()),
        batches=len(start.batches),
        samples_per_step=samples_in(first, start.batch_dim),
        metric=None if job.evaluate is None else "evaluate(model)",
        higher_is_better=job.higher_is_better,
        lower_is_better=job.lower_is_better,
        notes=(*job.notes, *batch_notes(first, job.batch_dim)),
        start_from=None if job.checkpoint is None else job.checkpoint.path,
        structure=structure_of(model),
        source_hash=_source_hash(job.source),
        batch_hash=batch_hash(first),
        batch_ms=start.batch_ms,
    )


def with_later_notes(record: TargetRecord | None, job: Job) -> TargetRecord | None:
    """The record with the notes that the job's runs have added since it was made."""
    later = tuple(note for note in job.notes if record is not None and note not in record.notes)
    return replace(record, notes=(*record.notes, *later)) if record is not None and later else record


def typed_target(record: TargetRecord) -> str:
    """What was typed to scan a job, from its record: a file or module, with the attribute if one was named."""
    attribute = record.name.partition(":")[2]
    return f"{record.source}:{attribute}" if attribute else record.source


SINCE = "since the scan: "


def what_changed(before: TargetRecord, now: TargetRecord) -> tuple[str, ...]:
    """The target's notes, with what differs from when it was scanned; those of an earlier verification are replaced.

    Raises UsageError `target-changed` for another model.
    """
    if now.parameters != before.parameters:
        raise _changed(f"has {now.parameters:,} parameters, the scan saw {before.parameters:,}", before.source)
    if before.structure is not None and now.structure != before.structure:
        raise _changed("has other modules, or other names for them, than the scan saw", before.source)
    kept = tuple(note for note in before.notes if not note.startswith(SINCE))
    pairs = (
        ("the target file", before.source_hash, now.source_hash),
        ("the first batch", before.batch_hash, now.batch_hash),
        ("the optimizer", before.optimizer, now.optimizer),
        ("the batch size", before.samples_per_step, now.samples_per_step),
        ("the metric", before.metric, now.metric),
    )
    hashes = (before.source_hash, before.batch_hash)  # which tell a reader nothing
    found = []
    for what, old, new in pairs:
        if old is not None and old != new:
            told = "" if old in hashes else f": it was {old}, now {new}"
            found.append(f"{SINCE}{what} has changed{told}")
    return (*kept, *found)


def _changed(how: str, source: str) -> UsageError:
    return UsageError(
        "target-changed", f"{source}: the model {how}", "scan it again: what was captured is another model's"
    )


def structure_of(model: torch.nn.Module) -> str:
    """A hash of the modules' names and types and of the parameters' names, shapes and types."""
    lines = [f"{name} {type(module).__qualname__}" for name, module in model.named_modules()]
    lines += [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in model.named_parameters()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _source_hash(source: str) -> str | None:
    path = Path(source)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def _described(optimizer: torch.optim.Optimizer) -> str:
    rate = optimizer.param_groups[0].get("lr")
    return f"{type(optimizer).__name__}(lr={float(rate):g})" if rate is not None else type(optimizer).__name__
