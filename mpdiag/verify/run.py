"""The verification from plan to verdict; its trials so far can be asked for at any time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mpdiag.device.nvml import Nvml
from mpdiag.diagnosis import Advice, Capture, Trial, Verification
from mpdiag.errors import MpdiagError
from mpdiag.foretold import Prediction
from mpdiag.target import Job, Start
from mpdiag.training.session import open_session
from mpdiag.verify.arms import BASELINE, FP16, Arm, arms_for
from mpdiag.verify.compare import compare_arms
from mpdiag.verify.plan import Plan, fit
from mpdiag.verify.prediction import compare_with_fp16
from mpdiag.verify.trials import measure_costs, train_arm
from mpdiag.verify.verdict import decide, train_with

REHEARSAL_STEPS = 4  # the first is warm-up; of the others the quickest counts, for others may use the machine
OVERRUN = 1.2  # past this much of the budget no further run is begun

Report = Callable[[str], None]


@dataclass
class VerificationRun:
    """A verification in the making."""

    job: Job
    advice: Advice
    device: torch.device
    higher_is_better: bool = True
    trials: list[Trial] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    prediction: Prediction | None = None
    prediction_reason: str | None = "not measured: the verification ended before it"

    def record(self, interrupted: bool = False) -> Verification:
        """What has been found so far, judged; an interrupted run is inconclusive."""
        comparisons = compare_arms(self.trials, self.higher_is_better)
        if not any(t.arm == FP16 for t in self.trials):
            verdict, reason = "inconclusive", "FP16 was not trained"
        else:
            verdict, reason = decide(self.advice, self.trials, comparisons)
        if interrupted:
            verdict, reason = "inconclusive", "the verification was stopped before its end"
        chosen = None if interrupted else train_with(comparisons)
        return Verification(
            tuple(self.trials),
            comparisons,
            verdict,
            reason,
            self.prediction,
            self.prediction_reason,
            tuple(self.cut),
            chosen,
        )

    def predict(self, start: Start, capture: Capture, steps: int) -> None:
        """Compare what the FP32 counts foretell with what FP16 does, after 0 and after `steps` FP32 steps."""
        scale = self.advice.loss_scale
        k = scale.log2_scale if scale.log2_scale is not None else scale.upper_log2
        types = {(table.kind, table.name): table.amp_dtype for table in capture.tables}
        try:
            found = compare_with_fp16(self.job, start, self.device, types, tuple(dict.fromkeys((0, k or 0))), steps)
        except MpdiagError as error:
            self.prediction_reason = f"not measured: {error.message}"
            return
        self.prediction, self.prediction_reason = found, None if found.tensors else "no tensor is FP16 under autocast"

    def run(self, seed: int, steps: int, seeds: int, budget_seconds: float, report: Report) -> None:
        """Train every arm for every seed (seed by seed, so that pairs are complete), then measure costs on a GPU."""
        began = time.perf_counter()
        arms, left_out = arms_for(self.advice.loss_scale, self.device, self.advice.plan)
        self.cut += left_out
        step_seconds, run_seconds = self._rehearse(arms, seed)
        plan = fit(arms, steps, seeds, step_seconds, budget_seconds, run_seconds)
        self.cut += plan.cut
        for index in range(plan.seeds):
            start = self.job.start((seed + index) % 2**64, plan.steps)
            for arm in plan.arms:
                if self._late(began, budget_seconds) and index > 0:
                    self.cut.append(f"arm {arm.name}, seed {start.seed}: not run, the time budget was used up")
                    continue
                report(f"verify {arm.name}, seed {start.seed} ({index + 1} of {plan.seeds}), {plan.steps} steps")
                self.trials.append(train_arm(self.job, arm, start, plan.steps, self.device))
        if self.device.type == "cuda":
            self._costs(plan, seed, report)

    def _costs(self, plan: Plan, seed: int, report: Report) -> None:
        start = self.job.start(seed, plan.steps)
        nvml = Nvml(self.device)
        for arm in plan.arms:
            place = next((i for i, t in enumerate(self.trials) if t.arm == arm.name and t.seed == seed), None)
            if place is not None:
                report(f"measure {arm.name}: time, memory, tensor cores, energy")
                self.trials[place] = measure_costs(self.job, arm, start, self.device, self.trials[place], nvml)

    def _rehearse(self, arms: list[Arm], seed: int) -> tuple[dict[str, float], float]:
        """Seconds a step of the baseline and of FP16, and seconds a run besides its steps, to plan with.

        An FP16 arm that fails counts as the baseline; so does a metric that fails as free.
        """
        start = self.job.start(seed, 1)
        seconds: dict[str, float] = {}
        besides = 0.0
        for arm in (a for a in arms if a.name in (BASELINE, FP16)):
            try:
                opened = time.perf_counter()
                with open_session(self.job, start, arm.precision, self.device) as run:
                    besides = max(besides, time.perf_counter() - opened)
                    times = []
                    for step in range(REHEARSAL_STEPS):
                        began = time.perf_counter()
                        losses = run.step(run.place(start.batch(step)))
                        float(next(iter(losses.values())))  # wait for the device
                        times.append(time.perf_counter() - began)
                    seconds[arm.name] = min(times[1:])
                    if arm.name == BASELINE:
                        began = time.perf_counter()
                        run.evaluate()
                        besides += time.perf_counter() - began
            except MpdiagError:
                if arm.name == BASELINE:
                    raise
                seconds[arm.name] = seconds.get(BASELINE, 0.0)
        return seconds, besides

    @staticmethod
    def _late(began: float, budget_seconds: float) -> bool:
        return time.perf_counter() - began > OVERRUN * budget_seconds
