"""All arms of a comparison, warm and ready to take turns: all in memory where they fit, else built block by block."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from mpdiag.device.stopwatch import release_memory, time_block
from mpdiag.errors import MpdiagError, reason_of
from mpdiag.measure.steady import SteadyRun, steady_run
from mpdiag.settings import WARMUP_STEPS
from mpdiag.target import Job, Start
from mpdiag.training.precision import Precision

PACE_STEPS = 3  # to plan blocks with, after the warm-up

Report = Callable[[str], None]


class ArmsTooLargeError(Exception):
    """An arm ran out of memory alone on the device; `arm` names it."""

    def __init__(self, arm: str) -> None:
        super().__init__(arm)
        self.arm = arm


class Fleet:
    """The arms of a comparison. Made by `open_fleet`.

    step_seconds: each usable arm's pace. ready_seconds: what building and warming it up for a block takes, where it is
    not kept in memory. failures: what the code of the others raised. resident: all are in memory. samples, batch_sizes:
    as a SteadyRun's, of every arm.
    """

    def __init__(self, job: Job, start: Start, arms: dict[str, Precision], device: torch.device) -> None:
        self.job, self.start, self.arms, self.device = job, start, arms, device
        self.runs: dict[str, SteadyRun] = {}
        self.step_seconds: dict[str, float] = {}
        self.ready_seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self.samples: int | float | None = None
        self.batch_sizes: tuple[int, ...] = ()
        self.resident = True

    @property
    def usable(self) -> list[str]:
        """The arms that can be stepped, the baseline first."""
        return [name for name in self.arms if name not in self.failures]

    @contextmanager
    def ready(self, name: str) -> Iterator[SteadyRun]:
        """An arm for a block of steps, warm: after as many steps whether it was in memory or is built for the block."""
        if self.resident:
            yield self.runs[name]
            return
        release_memory()  # of an arm that failed too: what it held was held by its error until now
        try:
            with ExitStack() as stack:
                yield stack.enter_context(steady_run(self.job, self.start, self.arms[name], self.device, WARMUP_STEPS))
        finally:
            release_memory()

    def _learn(self, name: str, run: SteadyRun) -> None:
        self.samples, self.batch_sizes = run.samples, run.batch_sizes
        with run.in_force_again() as step:
            times, _ = time_block(step, PACE_STEPS, self.device)
        self.step_seconds[name] = max(statistics.median(times) / 1000, 1e-6)

    def _together(self, stack: ExitStack, report: Report) -> bool:
        """Build every arm and keep it; False where they do not fit."""
        for name, precision in self.arms.items():
            report(f"warm up {name}")
            try:
                self.runs[name] = stack.enter_context(
                    steady_run(self.job, self.start, precision, self.device, WARMUP_STEPS)
                )
                self._learn(name, self.runs[name])
            except (MpdiagError, RuntimeError) as error:  # a device tells of a failed step when it is waited for
                if getattr(error, "slug", None) == "out-of-memory":
                    return False
                self.failures[name] = reason_of(error)
        return True

    def _one_by_one(self, report: Report) -> str | None:
        """Build every arm once, alone; the name of one that does not fit."""
        self.resident = False
        self.runs.clear()
        self.failures.clear()
        for name in self.arms:
            report(f"warm up {name}, alone on the device")
            began = time.perf_counter()
            try:
                with self.ready(name) as run:
                    self._learn(name, run)
                self.ready_seconds[name] = time.perf_counter() - began
            except (MpdiagError, RuntimeError) as error:
                if getattr(error, "slug", None) == "out-of-memory":
                    return name
                self.failures[name] = reason_of(error)
        return None


@contextmanager
def open_fleet(
    job: Job, start: Start, arms: dict[str, Precision], device: torch.device, report: Report = lambda line: None
) -> Iterator[Fleet]:
    """Every arm warmed up, the first being the baseline; what an arm's code raises is its failure.

    Raises ArmsTooLargeError where one arm alone does not fit the device, MpdiagError where the baseline raises.
    """
    release_memory()
    fleet = Fleet(job, start, arms, device)
    stack = ExitStack()
    try:
        if not fleet._together(stack, report):
            stack.close()
            too_large = fleet._one_by_one(report)
            if too_large is not None:
                release_memory()
                raise ArmsTooLargeError(too_large)
        baseline = next(iter(arms))
        if baseline in fleet.failures:
            raise MpdiagError("baseline-failed", fleet.failures[baseline], "mend the FP32 job first")
        yield fleet
    finally:
        stack.close()
        fleet.runs.clear()
        release_memory()
