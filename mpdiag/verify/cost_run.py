"""Measuring what the arms cost on a GPU, stage by stage within the time budget; what is cut or fails has its reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from mpdiag.costs.kernels import ArmKernels
from mpdiag.costs.ladder import NOT_COUNTED, ladder_of
from mpdiag.costs.memory import MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.costs.tensor_cores import Calibration
from mpdiag.device.block import LEAD_IN_SECONDS
from mpdiag.device.memory import CudaAllocator
from mpdiag.errors import MpdiagError, safe_text
from mpdiag.measure.ceiling import SECONDS as CEILINGS_SECONDS
from mpdiag.measure.ceiling import measure_ceilings
from mpdiag.measure.counters import counters_of_arm
from mpdiag.measure.energy import SECONDS as LONG_WINDOW_SECONDS
from mpdiag.measure.energy import energy_from, gpm_from, windows_of_arms
from mpdiag.measure.fleet import ArmsTooLargeError, Fleet, open_fleet
from mpdiag.measure.flops import flops_of
from mpdiag.measure.layers import arithmetic_of
from mpdiag.measure.memory import memory_of_arms
from mpdiag.measure.resize import halved
from mpdiag.measure.sharing import REST_SECONDS
from mpdiag.measure.timing import time_arms
from mpdiag.measure.trace import trace_arm
from mpdiag.settings import MAX_HALVINGS
from mpdiag.target import Job, Start
from mpdiag.target.batches import samples_in
from mpdiag.training.precision import Precision
from mpdiag.verify.arms import BASELINE, BF16, FP16, FP16_PLAN, Arm, timed_arms
from mpdiag.verify.batch_stage import largest_batches
from mpdiag.verify.channels_last import told_by_its_arm
from mpdiag.verify.costs_asked import CostsAsked
from mpdiag.verify.plan import Pace
from mpdiag.verify.warm_up import that_fit, warm_up_seconds

TIMING_SHARE, ENERGY_SHARE = 0.35, 0.35  # of what is left when their turn comes
LEAST_TIMING_SECONDS = 3.0
WINDOW_SECONDS = 2.1  # twenty ticks of the energy counter, the fewest that are worth a figure
CEILINGS_SHARE = 0.2  # of what is left, where that is less than CEILINGS_SECONDS; never under half of them
TRACE_SECONDS = 4.0  # an arm, with the profiler's start
COUNTERS_SECONDS = 60.0  # a process of its own that loads torch and the model, and steps once a counter
CROWDED = 0.8  # of the card: memory children run beside the training only where all fit well

LEAST_MEMORY_SECONDS = 20.0  # a process of its own loads torch and the model
MEMORY_SHARE = 0.5  # of what is left, at most

Report = Callable[[str], None]


class CostRun:
    """The measurements in the making; `record()` at any time gives what there is. cut: one sentence for what is not."""

    def __init__(
        self, job: Job, arms: Sequence[Arm], device: torch.device, seed: int, on_progress: Callable[[], None],
        pace: Pace | None = None,
    ) -> None:  # fmt: skip
        self.job, self.arms, self.device, self.seed = job, list(arms), device, seed
        self.cut: list[str] = []
        self._on_progress = on_progress
        self._costs = Costs.absent("the verification ended before it")
        self._pool = ThreadPoolExecutor(1)
        self._memory: Future[dict[str, MemoryUse]] | None = None
        self._until = 0.0
        self._pace = pace

    def record(self) -> Costs:
        """What has been measured so far."""
        return self._costs

    def begin_memory_beside(self, samples: int | None, seconds: float, report: Report) -> None:
        """Start the processes that measure memory beside the training, where the card holds all of them well.

        A peak is the same with company; a time would not be, so nothing is timed before they have ended.
        """
        allocator = CudaAllocator(self.device)
        _, total = allocator.card()
        own = allocator.peaks().reserved_bytes
        if own * (len(self._unpaired()) + 1) < CROWDED * total:
            self._begin_memory(samples, seconds, report, own)

    def _begin_memory(self, samples: int | None, seconds: float, report: Report, expected_bytes: int | None) -> None:
        arms = self._unpaired()
        given = (self.job, arms, self.seed, self.device, seconds, samples, report, expected_bytes)
        self._memory = self._pool.submit(memory_of_arms, *given)

    def run(self, start: Start, seconds: float, report: Report, asked: CostsAsked) -> None:
        """Every stage that fits into `seconds`; the largest batch, if asked for, has a time of its own."""
        began = time.perf_counter()
        self._until = began + seconds
        try:
            self._memory_of_arms(start, report)
            self._in_turns(start, report)
            self._counters(report)
            self._ladders()
            self._largest_batch(asked, report)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._keep(seconds=round(time.perf_counter() - began, 3))

    def _left(self) -> float:
        return self._until - time.perf_counter()

    def _keep(self, **parts: object) -> None:
        self._costs = replace(self._costs, **parts)  # type: ignore[arg-type] # field names, checked by tests
        self._on_progress()

    def _cut(self, what: str, needs_seconds: float) -> str | None:
        """Why a stage is left out of what is left of the budget, noted among what was cut; None where it fits."""
        left = self._left()
        if left >= needs_seconds:
            return None
        why = f"it takes about {needs_seconds:.0f} s, the time budget had {max(left, 0.0):.0f} s left"
        self.cut.append(f"{what}: not measured, {why}")
        return why

    def _unpaired(self) -> dict[str, Precision]:
        """The arms whose memory, energy and kernels are told: those that are candidates, and FP32."""
        return {arm.name: arm.precision for arm in self.arms if arm.name in (BASELINE, FP16, FP16_PLAN, BF16)}

    def _memory_of_arms(self, start: Start, report: Report) -> None:
        """Before anything is timed, so that no other process works on the GPU then."""
        if self._memory is None:
            why = self._cut("memory", LEAST_MEMORY_SECONDS)
            if why is not None:
                self._keep(memory_reason=why)
                return
            share = MEMORY_SHARE * self._left()
            self._begin_memory(samples_in(start.batches[0], start.batch_dim), share, report, None)
        assert self._memory is not None
        try:
            found = tuple(self._memory.result().values())
        except (MpdiagError, OSError, RuntimeError) as error:
            self._keep(memory_reason=safe_text(error))
            return
        self._keep(memory=found, memory_reason=None)

    def _in_turns(self, start: Start, report: Report) -> None:
        """What needs the arms side by side: time, energy, pipes, kernels; on half the batch where one does not fit."""
        model = self.job.build(start, torch.device("cpu"))
        arms, left_out = that_fit(timed_arms(self.arms, model), self._pace, self._left(), TIMING_SHARE)
        del model
        self.cut += left_out
        cut = self._cut("step time", LEAST_TIMING_SECONDS + warm_up_seconds(arms, self._pace))
        if cut is not None:
            self._none_in_turns(cut)
            return
        crowded = ""  # the arm that did not fit
        for halvings in range(MAX_HALVINGS + 1):
            try:
                with open_fleet(self.job, start, arms, self.device, report) as fleet:
                    if halvings:
                        part = f"1/{2**halvings} of the batch for all arms"
                        self.cut.append(f"costs: measured on {part}, because arm {crowded} did not fit")
                    self._side_by_side(fleet, start, report)
                return
            except ArmsTooLargeError as error:
                crowded = error.arm
                smaller = halved(start)
                if smaller is None:
                    break
                start = smaller
            except MpdiagError as error:
                self._none_in_turns(error.message)
                return
        self._none_in_turns("the arms do not fit in memory at any batch size")

    def _side_by_side(self, fleet: Fleet, start: Start, report: Report) -> None:
        """The stages in the order of their worth; what BF16 adds is told last, if there is time."""
        self._time(fleet, report)
        calibration = self._ceilings(report)
        traced = [name for name in self._unpaired() if name in fleet.usable]
        self._flops(start)
        self._kernels(fleet, [name for name in traced if name != BF16], report)
        self._pipes_and_energy(fleet, calibration, report)
        self._kernels(fleet, [name for name in traced if name == BF16], report)

    def _none_in_turns(self, reason: str) -> None:
        """Give the reason to whatever needs the arms side by side and has not been measured."""
        costs = self._costs
        measured = {
            "timing": costs.timing, "energy": costs.energy, "gpm": costs.gpm, "kernels": costs.kernels,
            "ceilings": costs.ceilings,
        }  # fmt: skip
        self._keep(**{f"{part}_reason": reason for part, found in measured.items() if not found})

    def _time(self, fleet: Fleet, report: Report) -> None:
        share = max(LEAST_TIMING_SECONDS, TIMING_SHARE * self._left())
        report(f"time {len(fleet.usable)} arms in turns, {share:.0f} s")
        timing = time_arms(fleet, share)
        self._keep(timing=timing, timing_reason=None, sharing=timing.sharing)

    def _ceilings(self, report: Report) -> Calibration | None:
        """What this GPU sustains on known bodies, and what its counters read on them."""
        why = self._cut("ceilings", CEILINGS_SECONDS / 2)
        if why is not None:
            self._keep(ceilings_reason=why)
            return None
        seconds = min(CEILINGS_SECONDS, max(CEILINGS_SECONDS / 2, CEILINGS_SHARE * self._left()))
        ceilings, calibration = measure_ceilings(self.device, seconds, report=report)
        self._keep(ceilings=ceilings, calibration=calibration, ceilings_reason=None)
        return calibration

    def _pipes_and_energy(self, fleet: Fleet, calibration: Calibration | None, report: Report) -> None:
        names = [name for name in self._unpaired() if name in fleet.usable]
        ready = sum(fleet.ready_seconds.get(name, 0.0) for name in names)
        rounds, seconds = self._windows(len(names), ready)
        why = self._cut("energy", REST_SECONDS + rounds * (ready + seconds * len(names)))
        if why is not None:
            self._keep(energy_reason=why, gpm_reason=why)
            return
        windows = windows_of_arms(names, fleet.ready, self.device, seconds, rounds, report)
        pipes = () if calibration is None else gpm_from(windows, calibration)
        reason = None if pipes else "the counters were not calibrated"
        self._keep(
            energy=energy_from(windows), energy_reason=None, gpm=pipes, gpm_reason=reason, sharing=windows.sharing
        )

    def _windows(self, arms: int, ready_seconds: float) -> tuple[int, float]:
        """(rounds, seconds a window): three rounds of long windows where there is time, else shorter, then fewer.

        ready_seconds: what a round takes to build and warm up its arms.
        """
        room = ENERGY_SHARE * self._left() - REST_SECONDS
        for rounds, seconds in ((3, LONG_WINDOW_SECONDS), (3, WINDOW_SECONDS)):
            if rounds * (ready_seconds + arms * (seconds + LEAD_IN_SECONDS)) <= room:
                return rounds, seconds
        return 1, WINDOW_SECONDS

    def _flops(self, start: Start) -> None:
        try:
            self._keep(flops=flops_of(self.job, start, self.device))
        except MpdiagError as error:
            self.cut.append(f"FLOPs: not counted: {error.message}")

    def _kernels(self, fleet: Fleet, names: Sequence[str], report: Report) -> None:
        times = {each.arm: each.step_time_ms for each in (self._costs.timing.arms if self._costs.timing else ())}
        for name in names:
            why = self._cut(f"kernels of {name}", TRACE_SECONDS + fleet.ready_seconds.get(name, 0.0))
            if why is not None:
                if not self._costs.kernels:
                    self._keep(kernels_reason=why)
                return
            report(f"trace the kernels of {name}")
            try:
                with fleet.ready(name) as run:
                    found = trace_arm(
                        run, step_ms=times.get(name), flops=self._costs.flops, ceilings=self._costs.ceilings
                    )
            except MpdiagError as error:
                arithmetic = arithmetic_of(fleet.arms[name])
                found = ArmKernels(name, arithmetic, None, reason=error.message, layers_reason=error.message)
            self._keep(kernels=(*self._costs.kernels, replace(found, arm=name)), kernels_reason=None)

    def _ladders(self) -> None:
        """Every traced arm with all levels of evidence side by side."""
        pipes = {each.arm: each for each in self._costs.gpm}
        counted = {each.arm: each for each in self._costs.counters}
        costs = self._costs
        why = costs.counters_reason or NOT_COUNTED.format(arms=", ".join(counted))
        found = [
            replace(
                told_by_its_arm(each, costs),
                ladder=ladder_of(each, pipes.get(each.arm), counted.get(each.arm), costs.flops, why, costs.gpm_reason),
            )
            for each in costs.kernels
        ]
        self._keep(kernels=tuple(found))

    def _counters(self, report: Report) -> None:
        arms = self._unpaired()
        name = next((arm for arm in (FP16_PLAN, FP16) if arm in arms), None)
        why = "FP16 was not trained" if name is None else self._cut("hardware counters", COUNTERS_SECONDS)
        if why is not None or name is None:
            self._keep(counters_reason=why)
            return
        report(f"count the tensor-core operations of one step of {name}")
        found = counters_of_arm(name, self.job, arms[name], self.seed, self.device, self._left())
        self._keep(counters=(found,), counters_reason=None)

    def _largest_batch(self, asked: CostsAsked, report: Report) -> None:
        if not asked.largest_batch:
            self._keep(largest_batch_reason="not asked for: --largest-batch")
            return
        for found in largest_batches(self.job, self._unpaired(), self.seed, self.device, asked, report):
            self._keep(largest_batch=(*self._costs.largest_batch, found), largest_batch_reason=None)
