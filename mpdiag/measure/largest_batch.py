"""The largest batch an arm trains with, found in child processes: a lack of memory there harms nothing here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from mpdiag.costs.largest_batch import ENOUGH, BatchTrial, LargestBatch, bracket, line, next_batch
from mpdiag.device.stopwatch import release_memory
from mpdiag.measure.again import LEAST_SECONDS, cannot_start_again, request_for
from mpdiag.measure.child import Child, Reply
from mpdiag.target import Job
from mpdiag.training.precision import Precision

SEARCH = "mpdiag.measure.batch_trial:try_batches"
SPEED = "mpdiag.measure.batch_trial:time_batch"
PREPARE = "mpdiag.measure.again:prepare"
GRACE_SECONDS = 10.0  # for the trial under way when time is up; then the child is ended, and what it found is lost
REPEATED = "beyond the job's own batch its samples are repeated: memory and speed are those of as many new ones"

Report = Callable[[str], None]


def find_largest_batch(
    job: Job,
    precision: Precision,
    seed: int,
    device: torch.device,
    seconds: float,
    memory_limit_bytes: int | None = None,
    report: Report = lambda line: None,
    arm: str | None = None,
) -> LargestBatch:
    """Search within about `seconds`; memory_limit_bytes asks for a smaller card. arm: its name, else the precision's.

    What could not be found has its reason in the record; a search that was cut says "at least".
    """
    search = _Search(arm or precision.name, precision, seconds, report)
    reason = cannot_start_again(job, device)
    if reason is not None:
        return LargestBatch.absent(search.arm, precision.name, reason)
    release_memory()  # what this process keeps for itself is not free for the children
    request = request_for(job, precision, seed, device, None) | {"memory_limit_bytes": memory_limit_bytes}
    with search.processes:
        return search.run(request, time.monotonic() + seconds)


class Processes:
    """Fresh processes, the next of which loads the job while one is at work: most of a trial is loading.

    It does so beside a search only, not beside a batch that is being timed.
    """

    def __init__(self) -> None:
        self._next: Child | None = None
        self._prepares = True

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *given: object) -> None:
        if self._next is not None:
            self._next.end()

    def run(self, task: str, request: dict[str, Any], seconds: float) -> Reply:
        """Run a task in a process of its own, as `in_child` does."""
        child, self._next = self._next, None
        if child is None or not child.alive:
            self._prepares = self._prepares and child is None
            child = Child(task, request, seconds)
        else:
            child.ask(task, request, seconds)
        if task == SEARCH and self._prepares:
            self._next = Child(PREPARE, request, seconds, prepares=True)
        reply = child.reply()
        if not child.withdrew:
            return reply
        self._prepares = False  # the job starts CUDA as it is loaded: the next one would take memory of the card
        return Child(task, request, seconds).reply()


class _Search:
    """One arm's search in the making."""

    def __init__(self, arm: str, precision: Precision, seconds: float, report: Report) -> None:
        self.arm, self._precision, self._report = arm, precision, report
        self._out_of_time = f"the {seconds:.0f} s for the search were used up, a longer --time-budget gives it more"
        self.trials: list[BatchTrial] = []
        self.card: dict[str, Any] = {}
        self.cut: str | None = None
        self.step_time_ms: float | None = None
        self.speed_reason: str | None = None
        self.processes = Processes()

    def run(self, request: dict[str, Any], until: float) -> LargestBatch:
        """Search, then time what was found; where it does not fit in a fresh process, search on below it."""
        while True:
            self._search(request, until)
            batch, _ = bracket(self.trials)
            if batch is None or self._time(request, batch, until):
                return self._record()

    def _search(self, request: dict[str, Any], until: float) -> None:
        while self.cut is None and (wanted := self._next()) is not None:
            left = until - time.monotonic()
            if left < LEAST_SECONDS:
                self.cut = self._out_of_time
                return
            self._report(f"largest batch, {self.arm}: try {wanted or 'the own batch'}")
            known = {"trials": [asdict(trial) for trial in self.trials], "seconds": left - GRACE_SECONDS}
            reply = self.processes.run(SEARCH, request | known, left)
            if reply.value is None:
                self.cut = reply.reason or "the process gave no reason"
                return
            before = len(self.trials)
            self.trials = [BatchTrial(**trial) for trial in reply.value.pop("trials")]
            self.card = reply.value
            if len(self.trials) == before:
                self.cut = self._out_of_time

    def _next(self) -> int | None:
        """The batch to try; 0 while the job's own is not known yet."""
        if not self.card:
            return 0
        return next_batch(self.trials, self.card["own_batch"], self.card["budget_bytes"])

    def _time(self, request: dict[str, Any], batch: int, until: float) -> bool:
        """Whether the batch stands: tried again in a fresh process and timed, or no time left for that."""
        left = until - time.monotonic()
        if left < LEAST_SECONDS:
            self.speed_reason = f"no time was left to measure the speed: {self._out_of_time}"
            return True
        self._report(f"largest batch, {self.arm}: time {batch}")
        reply = self.processes.run(SPEED, request | {"batch": batch}, left)
        if reply.value is None:
            self.speed_reason = reply.reason
            return True
        trial = BatchTrial(**reply.value["trial"])
        if trial.fits:
            self.step_time_ms, self.speed_reason = reply.value["step_time_ms"], reply.value.get("speed_reason")
            return True
        self.trials = [each for each in self.trials if each.batch != batch] + [trial]
        return False

    def _record(self) -> LargestBatch:
        batch, unfit = bracket(self.trials)
        known: dict[str, Any] = {key: self.card.get(key) for key in ("card_bytes", "budget_bytes", "own_batch")}
        known |= {"limited": bool(self.card.get("limited")), "trials": tuple(self.trials)}
        notes = list(self.card.get("notes", ()))
        if batch is None:
            lacking = "not even one sample fits" if unfit == 1 else "none of the batches tried fits"
            reasons = {trial.reason for trial in self.trials if not trial.fits}
            told = f"{lacking}: {', '.join(sorted(filter(None, reasons)))}" if self.trials else None
            reason = "; ".join(filter(None, (told, self.cut))) or "nothing was tried"
            return LargestBatch.absent(self.arm, self._precision.name, reason, notes=tuple(notes), **known)
        if batch > self.card["own_batch"]:
            notes.append(REPEATED)
        if batch >= ENOUGH:
            notes.append(f"the search goes no farther than {ENOUGH} samples")
        if self.cut is not None:
            notes.append(f"the search ended early: {self.cut}")
        through = line(self.trials)
        speed = None if self.step_time_ms is None else batch * 1000 / self.step_time_ms
        return LargestBatch(
            arm=self.arm,
            precision=self._precision.name,
            batch=batch,
            at_least=unfit is None or self.cut is not None,
            too_large=unfit,
            too_large_reason=next((t.reason for t in self.trials if t.batch == unfit and not t.fits), None),
            peak_bytes=next(t.peak_bytes for t in self.trials if t.batch == batch),
            fixed_bytes=None if through is None else round(through[0]),
            bytes_per_sample=None if through is None else round(through[1]),
            samples_per_second=speed,
            step_time_ms=self.step_time_ms,
            speed_reason=self.speed_reason,
            notes=tuple(notes),
            **known,
        )
