"""Measuring what the arms cost on a GPU, stage by stage within the time budget; what is cut or fails has its reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from mpdiag.arm_names import BASELINE, BF16, FP16, FP16_COMPILED, FP16_PLAN, FP16_PURE
from mpdiag.costs.kernels import ArmKernels
from mpdiag.costs.record import Costs
from mpdiag.costs.tensor_cores import Calibration
from mpdiag.errors import MpdiagError, reason_of
from mpdiag.measure.ceiling import SECONDS as CEILINGS_SECONDS
from mpdiag.measure.ceiling import measure_ceilings
from mpdiag.measure.counters import counters_of_arm
from mpdiag.measure.energy import energy_from, gpm_from, windows_of_arms
from mpdiag.measure.fleet import ArmsTooLargeError, Fleet, open_fleet
from mpdiag.measure.flops import flops_of
from mpdiag.measure.layers import arithmetic_of
from mpdiag.measure.resize import halved
from mpdiag.measure.timing import arms_left_out, time_arms
from mpdiag.measure.trace import trace_arm
from mpdiag.settings import MAX_HALVINGS
from mpdiag.target import Job, Start
from mpdiag.target.batches import samples_in
from mpdiag.training.precision import Precision
from mpdiag.verify.arms import Arm, timed_arms
from mpdiag.verify.batch_stage import largest_batches
from mpdiag.verify.costs_asked import CostsAsked
from mpdiag.verify.energy_stage import SO_THAT, plan_windows, with_left_out
from mpdiag.verify.memory_stage import MemoryStage
from mpdiag.verify.plan import Pace
from mpdiag.verify.tensor_evidence import with_all_evidence
from mpdiag.verify.warm_up import LEFT_OUT_FIRST, that_fit, warm_up_seconds

TIMING_SHARE = 0.35  # of what is left when its turn comes
LEAST_TIMING_SECONDS = 3.0
CEILINGS_SHARE = 0.2  # of what is left, where that is less than CEILINGS_SECONDS; never under half of them
TRACE_SECONDS = 3.0  # an arm, with the profiler's start: 2 s with ResNet-50
COUNTERS_SECONDS = 60.0  # a process of its own that loads torch and the model, and steps once a counter

LEAST_MEMORY_SECONDS = 20.0  # a process of its own loads torch and the model
MEMORY_SHARE = 0.5  # of what is left, at most

Report = Callable[[str], None]


class CostRun:
    """The measurements in the making; `record()` at any time gives what there is. cut: one sentence for what is not."""

    def __init__(
        self, job: Job, arms: Sequence[Arm], device: torch.device, seed: int, on_progress: Callable[[], None],
        pace: Pace | None = None, asked: CostsAsked | None = None,
    ) -> None:  # fmt: skip
        self.job, self.arms, self.device, self.seed = job, list(arms), device, seed
        self.cut: list[str] = []
        self._on_progress = on_progress
        self._costs = Costs.absent("the verification ended before it")
        self._memory = MemoryStage(job, seed, device)
        self._until = 0.0
        self._pace = pace
        self.asked = asked or CostsAsked()

    def record(self) -> Costs:
        """What has been measured so far."""
        return self._costs

    def begin_memory_beside(self, samples: int | None, seconds: float, report: Report) -> None:
        """Start what measures memory beside the training, where there is room for both."""
        self._memory.begin_beside(self._told(), samples, seconds, report)

    def stop(self) -> None:
        """End what is at work beside this process."""
        self._memory.stop()

    def run(self, start: Start, seconds: float, report: Report) -> None:
        """Every stage that fits into `seconds`; the largest batch, if asked for, has a time of its own."""
        began = time.perf_counter()
        self._until = began + seconds
        try:
            self._memory_of_arms(start, report)
            self._in_turns(start, report)
            self._counters(start, report)
            self._keep(kernels=with_all_evidence(self._costs))
        finally:
            self._memory.close()
            self._keep(seconds=round(time.perf_counter() - began, 3))
        self._largest_batch(report)

    def _left(self) -> float:
        return self._until - time.perf_counter()

    def _keep(self, **parts: object) -> None:
        self._costs = replace(self._costs, **parts)  # type: ignore[arg-type] # field names, checked by tests
        self._on_progress()

    def _cut(self, what: str, needs_seconds: float, later_seconds: float = 0.0) -> str | None:
        """Why a stage is left out of what is left of the budget, noted among what was cut; None where it fits.

        later_seconds: of what is left, for stages to come.
        """
        left = self._left() - later_seconds
        if left >= needs_seconds:
            return None
        why = f"it takes about {needs_seconds:.0f} s, the time budget had {max(left, 0.0):.0f} s left"
        self.cut.append(f"{what}: not measured, {why}")
        return why

    def _candidates(self) -> dict[str, Precision]:
        """FP32 and the arms that one may train in: whose kernels and largest batch are told."""
        return {arm.name: arm.precision for arm in self.arms if arm.name in (BASELINE, FP16, FP16_PLAN, BF16)}

    def _told(self) -> dict[str, Precision]:
        """The arms whose memory and energy are told: the candidates, and a control if that is asked for."""
        controls = self.arms if self.asked.controls else ()
        return self._candidates() | {arm.name: arm.precision for arm in controls if arm.name == FP16_PURE}

    def _memory_of_arms(self, start: Start, report: Report) -> None:
        """Before anything is timed, so that no other process works on the GPU then."""
        if not self._memory.begun:
            why = self._cut("memory", LEAST_MEMORY_SECONDS)
            if why is not None:
                self._keep(memory_reason=why)
                return
            samples = samples_in(start.batches[0], start.batch_dim)
            self._memory.begin(self._told(), samples, MEMORY_SHARE * self._left(), report)
        try:
            found = self._memory.result()
        except (MpdiagError, OSError, RuntimeError) as error:
            self._keep(memory_reason=reason_of(error))
            return
        self._keep(memory=found, memory_reason=None)

    def _in_turns(self, start: Start, report: Report) -> None:
        """What needs the arms side by side: time, energy, pipes, kernels; on half the batch where one does not fit."""
        model = self.job.build(start, torch.device("cpu"))
        timed, left_out = timed_arms(self.arms, model, self.device)
        del model
        arms, too_slow = that_fit(timed | self._told(), self._pace, self._left(), TIMING_SHARE)
        self.cut += [*left_out, *too_slow]
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
            except (MpdiagError, RuntimeError) as error:  # of a device that is lost, too
                self._none_in_turns(reason_of(error))
                return
        self._none_in_turns("the arms do not fit in memory at any batch size")

    def _side_by_side(self, fleet: Fleet, start: Start, report: Report) -> None:
        """The stages in the order of their worth; what BF16 adds is told last, if there is time."""
        self._time(fleet, report)
        calibration = self._ceilings(report)
        traced = sorted((name for name in self._candidates() if name in fleet.usable), key=lambda name: name == BF16)
        # before any trace: torch.profiler leaves CUPTI attached, which makes each later launch some us slower, so that
        # windows after it held steps of up to 1.5 times the timed ones (T5 in BF16 on an H100)
        self._pipes_and_energy(fleet, traced, calibration, report)
        self._flops(start)
        self._kernels(fleet, traced, report)

    def _none_in_turns(self, reason: str) -> None:
        """Give the reason to whatever needs the arms side by side and has not been measured."""
        costs = self._costs
        measured = {
            "timing": costs.timing, "energy": costs.energy, "gpm": costs.gpm, "kernels": costs.kernels,
            "ceilings": costs.ceilings, "flops": costs.flops,
        }  # fmt: skip
        self._keep(**{f"{part}_reason": reason for part, found in measured.items() if not found})

    def _time(self, fleet: Fleet, report: Report) -> None:
        share = max(LEAST_TIMING_SECONDS, TIMING_SHARE * self._left())
        left_out, why = arms_left_out(fleet, share, self._left(), (FP16_COMPILED, *LEFT_OUT_FIRST))
        if why is not None:
            self.cut.append(f"step time: not measured, {why}")
            self._keep(timing_reason=why)
            return
        self.cut += [f"arm {name}: not timed, {reason}" for name, reason in left_out.items()]
        report(f"time {len(fleet.usable) - len(left_out)} arms in turns, {share:.0f} s")
        timing = time_arms(fleet, share, left_out)
        self._keep(timing=timing, timing_reason=None, sharing=timing.sharing)

    def _ceilings(self, report: Report) -> Calibration | None:
        """What this GPU sustains on known bodies, and what its counters read on them."""
        why = self._cut("ceilings", CEILINGS_SECONDS / 2)
        if why is not None:
            self._keep(ceilings_reason=why)
            return None
        seconds = min(CEILINGS_SECONDS, max(CEILINGS_SECONDS / 2, CEILINGS_SHARE * self._left()))
        ceilings, calibration = measure_ceilings(self.device, seconds, report=report, shared=self._costs.shared)
        self._keep(ceilings=ceilings, calibration=calibration, ceilings_reason=None)
        return calibration

    def _pipes_and_energy(
        self, fleet: Fleet, traced: Sequence[str], calibration: Calibration | None, report: Report
    ) -> None:
        """Windows of every arm in turns; time is left for the traces of FP32 and FP16, which tell more."""
        names = [name for name in self._told() if name in fleet.usable]
        traces = sum(TRACE_SECONDS + fleet.ready_seconds.get(name, 0.0) for name in traced if name != BF16)
        planned = plan_windows(names, fleet.ready_seconds, self._left() - traces, COUNTERS_SECONDS)
        why = self._cut("energy", planned.needs_seconds, traces)
        if why is not None:
            self._keep(energy_reason=why, gpm_reason=why)
            return
        if left := [name for name in names if name not in planned.names]:
            self.cut.append(f"energy of {', '.join(left)}: not measured, {SO_THAT}")
        windows = windows_of_arms(planned.names, fleet.ready, self.device, planned.seconds, planned.rounds, report)
        windows = with_left_out(windows, names)
        pipes = () if calibration is None else gpm_from(windows, calibration)
        reason = None if pipes else "the counters were not calibrated"
        self._keep(
            energy=energy_from(windows, self._costs.timing),
            energy_reason=None,
            gpm=pipes,
            gpm_reason=reason,
            sharing=windows.sharing,
        )

    def _flops(self, start: Start) -> None:
        try:
            self._keep(flops=flops_of(self.job, start, self.device), flops_reason=None)
        except (MpdiagError, RuntimeError) as error:
            self._keep(flops_reason=reason_of(error))
            self.cut.append(f"FLOPs: not counted: {reason_of(error)}")

    def _kernels(self, fleet: Fleet, names: Sequence[str], report: Report) -> None:
        so_far = self._costs
        times = {each.arm: each.step_time_ms for each in (so_far.timing.arms if so_far.timing else ())}
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
                        run, step_ms=times.get(name), flops=so_far.flops, ceilings=so_far.ceilings, shared=so_far.shared
                    )
            except (MpdiagError, RuntimeError, ValueError, OSError) as error:  # best effort: the stages after it go on
                why = reason_of(error)
                found = ArmKernels(name, arithmetic_of(fleet.arms[name]), None, reason=why, layers_reason=why)
            self._keep(kernels=(*self._costs.kernels, replace(found, arm=name)), kernels_reason=None)

    def _counters(self, start: Start, report: Report) -> None:
        arms = self._candidates()
        name = next((arm for arm in (FP16_PLAN, FP16) if arm in arms), None)
        why = "FP16 was not trained" if name is None else self._cut("hardware counters", COUNTERS_SECONDS)
        if why is not None or name is None:
            self._keep(counters_reason=why)
            return
        report(f"count the tensor-core operations of one step of {name}")
        samples = samples_in(start.batches[0], start.batch_dim)
        found = counters_of_arm(name, self.job, arms[name], self.seed, self.device, self._left(), samples)
        self._keep(counters=(found,), counters_reason=None)

    def _largest_batch(self, report: Report) -> None:
        if not self.asked.largest_batch:
            self._keep(largest_batch_reason="not asked for: --largest-batch")
            return
        began = time.perf_counter()
        for found in largest_batches(self.job, self._candidates(), self.seed, self.device, self.asked, report):
            self._keep(
                largest_batch=(*self._costs.largest_batch, found),
                largest_batch_reason=None,
                largest_batch_seconds=round(time.perf_counter() - began, 3),
            )
