"""The same job once more in another process: what to send there, and how to open it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from mpdiag.costs.gpu import NEEDS_GPU
from mpdiag.device.memory import holds_the_card
from mpdiag.errors import MpdiagError
from mpdiag.measure.resize import largest_batch_of, resized
from mpdiag.target import Job, Start, load_job
from mpdiag.training.precision import Precision, as_dict, from_dict
from mpdiag.training.session import Session

DRAWN = 8  # batches, the largest of which is measured
MOST_SKIPS = 20  # of steps by the GradScaler: from 2^16 it reaches any useful scale
LEAST_SECONDS = 20.0  # to start Python, torch and CUDA; with less a process would only be killed


@dataclass(frozen=True)
class Again:
    """A job in a child process; its start has one batch, the largest of those drawn."""

    job: Job
    start: Start
    precision: Precision
    device: torch.device


def cannot_start_again(job: Job, device: torch.device) -> str | None:
    """Why a measurement in a process of its own is not possible; None where it is."""
    if device.type != "cuda":
        return f"{NEEDS_GPU}; this run was on the {device.type.upper()}"
    return None if job.target else "the job was not loaded from a file or module, so no other process can load it"


def request_for(job: Job, precision: Precision, seed: int, device: torch.device, samples: int | None) -> dict[str, Any]:
    """The request to a child, as JSON carries it. samples: the batch size, None for the job's own."""
    return {
        "target": job.target,
        "start_from": None if job.checkpoint is None else job.checkpoint.path,
        "precision": as_dict(precision),
        "seed": seed,
        "device": str(device),
        "samples": samples,
    }


def prepare(request: dict[str, Any]) -> None:
    """Load the job of a request for an `open_again` to come in this process. What it raises is raised there again.

    A job that has touched CUDA by then would hold memory of the card while another process measures it: the process
    ends.
    """
    with contextlib.suppress(MpdiagError):
        _READY[_key(request)] = _loaded(request)
    if holds_the_card():
        raise SystemExit(0)


_READY: dict[str, tuple[Job, Start]] = {}


def _key(request: dict[str, Any]) -> str:
    return json.dumps([request[name] for name in ("target", "start_from", "seed")])


def _loaded(request: dict[str, Any]) -> tuple[Job, Start]:
    job = load_job(request["target"], request["start_from"])
    return job, job.start(request["seed"], DRAWN)


def open_again(request: dict[str, Any], largest: bool = True) -> Again:
    """Load the job of a request, with the largest of its batches or the first.

    Raises MpdiagError of the target, and `batch-not-resizable`.
    """
    key = _key(request)
    job, start = _READY.pop(key) if key in _READY else _loaded(request)
    batch = largest_batch_of(start) if largest else start.batch(0)
    if request["samples"] is not None:
        made = resized(batch, request["samples"], start.batch_dim)
        if made.batch is None:
            raise MpdiagError("batch-not-resizable", f"the batch size cannot be changed: {made.reason}", "")
        batch = made.batch
    device = torch.device(request["device"])
    return Again(job, replace(start, batches=[batch]), from_dict(request["precision"]), device)


@contextmanager
def steps_watched(session: Session) -> Iterator[Callable[[], bool]]:
    """Yields a function: has every optimizer made a step by now? A GradScaler skips steps whose gradients overflow."""
    waiting = set(session.optimizers)
    hooks = [
        optimizer.register_step_post_hook(lambda *given, name=name: waiting.discard(name))
        for name, optimizer in session.optimizers.items()
    ]
    try:
        yield lambda: not waiting
    finally:
        for hook in hooks:
            hook.remove()
