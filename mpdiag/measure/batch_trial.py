"""Trying batch sizes in a child process: each for three steps with the optimizer and a pass without gradients."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from typing import Any, Protocol

import torch

from mpdiag.costs.largest_batch import MIN_MARGIN_BYTES, BatchTrial, budget_of, next_batch
from mpdiag.device.memory import CudaAllocator, Peaks, is_out_of_memory
from mpdiag.device.stopwatch import release_memory, time_block
from mpdiag.errors import MpdiagError, safe_text
from mpdiag.measure.again import MOST_SKIPS, Again, open_again, steps_watched
from mpdiag.measure.resize import resized
from mpdiag.measure.steady import skips_watched
from mpdiag.target.batches import samples_in
from mpdiag.training.session import Session, open_session

STEPS = 3  # the first may take more than the later ones, and the later ones what fragments leave
TIMED_STEPS = 10
TIMED_BLOCKS = 3  # of so many steps, until the GradScaler skips none of them: a skipped step is shorter
SKIPS = f"the GradScaler skipped steps in {TIMED_BLOCKS} blocks of {TIMED_STEPS}"
LONGER = 2.0  # times the longest trial so far: what the next may take, since its batch is larger
OUT_OF_MEMORY = "out of memory"
GIB = 2**30


class Card(Protocol):
    """What a trial needs of a device's allocator: device.memory.CudaAllocator, or a fake."""

    def synchronize(self) -> None: ...  # noqa: D102
    def reset_peaks(self) -> None: ...  # noqa: D102
    def peaks(self) -> Peaks: ...  # noqa: D102
    def card(self) -> tuple[int, int]: ...  # noqa: D102
    def limit(self, limit_bytes: int) -> None: ...  # noqa: D102


def try_batches(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side of the search: go on from the trials in the request until one does not fit, or time is up."""
    began = time.monotonic()
    again = open_again(request)
    return tried(again, CudaAllocator(again.device), request, began)


def time_batch(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side of the last word: the batch found once more, in a process that tried no other, and its speed."""
    again = open_again(request)
    return timed(again, CudaAllocator(again.device), request)


def tried(again: Again, card: Card, request: dict[str, Any], began: float) -> dict[str, Any]:
    """The trials so far, old ones included, with the card they were made on."""
    found = room(card, request["memory_limit_bytes"])
    base = again.start.batches[0]
    own = samples_in(base, again.start.batch_dim)
    if own is None:
        raise MpdiagError("no-batch-size", "no tensor tells the batch size", "")
    card.limit(found["budget_bytes"])
    trials = [BatchTrial(**trial) for trial in request["trials"]]
    batch, slowest, ready = next_batch(trials, own, found["budget_bytes"]), 0.0, False
    try:
        with open_session(again.job, again.start, again.precision, again.device) as session:
            ready = True
            while batch is not None and (now := time.monotonic()) - began + LONGER * slowest < request["seconds"]:
                trials.append(attempt(session, base, batch, card, again.start.batch_dim))
                if not trials[-1].fits:
                    break  # what a lack of memory leaves behind must not count against the next
                batch = next_batch(trials, own, found["budget_bytes"])
                slowest = max(slowest, time.monotonic() - now)
    except Exception as error:
        if ready or not _lacks_memory(error):
            raise
        trials.append(BatchTrial(1, False, None, f"{OUT_OF_MEMORY} before the first batch"))  # the model is too large
    return {**found, "own_batch": own, "trials": [asdict(trial) for trial in trials]}


def timed(again: Again, card: Card, request: dict[str, Any]) -> dict[str, Any]:
    """{trial, step_time_ms, speed_reason}: the batch of the request tried; where it fits, the median of ten steps."""
    card.limit(room(card, request["memory_limit_bytes"])["budget_bytes"])
    samples = request["batch"]
    with open_session(again.job, again.start, again.precision, again.device) as session:
        trial = attempt(session, again.start.batches[0], samples, card, again.start.batch_dim)
        if not trial.fits:
            return {"trial": asdict(trial), "step_time_ms": None}
        batch = session.place(_resized(again.start.batches[0], samples, again.start.batch_dim))
        try:
            step_time_ms = _step_time(session, batch, again.device)
        except Exception as error:
            if not _lacks_memory(error):
                raise
            late = BatchTrial(samples, False, None, f"{OUT_OF_MEMORY} after its first {STEPS} steps")
            return {"trial": asdict(late), "step_time_ms": None}
    return {"trial": asdict(trial), "step_time_ms": step_time_ms, "speed_reason": None if step_time_ms else SKIPS}


def _step_time(session: Session, batch: Any, device: torch.device) -> float | None:
    """The median of ten steps, in ms; None where the GradScaler skipped steps in every block of them."""
    for _ in range(STEPS):
        session.step(batch)
    for _ in range(TIMED_BLOCKS):
        with skips_watched(session.scaler) as skipped:
            times, _ = time_block(lambda: session.step(batch), TIMED_STEPS, device)
            if not skipped():
                return statistics.median(times)
    return None


def room(card: Card, memory_limit_bytes: int | None) -> dict[str, Any]:
    """What of the card may be used, and what is to be said about that. Raises MpdiagError `gpu-full`."""
    free, total = card.card()
    whole = min(memory_limit_bytes or total, total)
    budget, notes = budget_of(whole), []
    if memory_limit_bytes is not None and memory_limit_bytes > total:
        notes.append(f"{memory_limit_bytes / GIB:.0f} GiB were asked for, the card has {total / GIB:.1f}")
    left = free - MIN_MARGIN_BYTES
    if left < budget:
        held = f"{(total - free) / GIB:.1f} of the card's {total / GIB:.1f} GiB"
        notes.append(f"{held} were in use already: this is the largest batch in what was left")
        budget = left
    if budget <= 0:
        raise MpdiagError("gpu-full", f"only {free / GIB:.1f} GiB of the card are free", "wait until it is")
    limited = memory_limit_bytes is not None and memory_limit_bytes < total
    return {"card_bytes": whole, "budget_bytes": budget, "limited": limited, "notes": notes}


def attempt(session: Session, base: Any, samples: int, card: Card, dim: int = 0) -> BatchTrial:
    """One trial. Raises MpdiagError where the batch cannot be resized, or fails at its own size for another reason."""
    wanted = _resized(base, samples, dim)
    before = card.peaks()
    card.reset_peaks()
    try:
        retries = _run(session, wanted, card)
        card.synchronize()
        peaks = card.peaks()
    except Exception as error:
        if _lacks_memory(error):
            return BatchTrial(samples, False, None, OUT_OF_MEMORY)
        if samples == samples_in(base, dim):
            raise
        message = error.message if isinstance(error, MpdiagError) else f"{type(error).__name__}: {safe_text(error)}"
        return BatchTrial(samples, False, None, message)
    finally:
        release_memory()
    if peaks.alloc_retries > retries or peaks.ooms > before.ooms:
        return BatchTrial(
            samples, False, None, "the allocator had to empty its cache and try again: slow, and no margin"
        )
    return BatchTrial(samples, True, peaks.reserved_bytes)


def _run(session: Session, wanted: Any, card: Card) -> int:
    """The trial's steps and its pass without gradients; how often the allocator had tried again by the second step.

    In the first step that the GradScaler does not skip, the optimizer's state finds the cache full of activations: the
    allocator empties it once and has room from then on. One that still has to later does so in every step.
    """
    batch = session.place(wanted)
    with steps_watched(session) as stepped:
        for _ in range(1 + MOST_SKIPS):
            session.step(batch)
            if stepped() or any(optimizer.state for optimizer in session.optimizers.values()):
                break
        card.synchronize()
        retries = card.peaks().alloc_retries
        for _ in range(STEPS - 1):
            session.step(batch)
    session.model.eval()
    try:
        with torch.no_grad(), session.region():
            next(iter(session.job.losses(session.called, batch)), None)
    except Exception as error:
        if _lacks_memory(error):
            raise  # others: a model may have no loss in evaluation mode
    finally:
        session.model.train()
    return retries


def _resized(base: Any, samples: int, dim: int) -> Any:
    if samples == samples_in(base, dim):
        return base
    made = resized(base, samples, dim)
    if made.batch is None:
        raise MpdiagError("batch-not-resizable", f"the batch size cannot be changed: {made.reason}", "")
    return made.batch


def _lacks_memory(error: BaseException) -> bool:
    slug = error.slug if isinstance(error, MpdiagError) else None
    return slug == "out-of-memory" or is_out_of_memory(error)
