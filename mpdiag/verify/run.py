"""The verification from plan to verdict; what it found so far can be asked for at any time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from mpdiag.accuracy import NO_GRADIENT_CHECK, GradientCheck
from mpdiag.arm_names import BASELINE, FP16
from mpdiag.costs.gpu import ON_THE_CPU
from mpdiag.costs.record import Costs
from mpdiag.device.stopwatch import release_memory
from mpdiag.diagnosis import Advice, Capture, SelfTest, Trial, Verification
from mpdiag.errors import MpdiagError, safe_text
from mpdiag.foretold import Prediction
from mpdiag.measure.child import end_children
from mpdiag.measure.resize import halved
from mpdiag.settings import MAX_HALVINGS, TRAINING_SHARE
from mpdiag.target import Job, Start
from mpdiag.target.batches import samples_in
from mpdiag.target.metrics import metric_notes
from mpdiag.verify.arms import Arm, arms_for
from mpdiag.verify.compare import compare_arms
from mpdiag.verify.controls import control_outcomes
from mpdiag.verify.cost_ratios import cost_comparisons, with_costs
from mpdiag.verify.cost_run import CostRun
from mpdiag.verify.costs_asked import CostsAsked
from mpdiag.verify.curve_band import curve_bands
from mpdiag.verify.deadline import Deadline, left_of, short
from mpdiag.verify.gradient_check import affordable, arms_to_check, check_gradients
from mpdiag.verify.plan import Pace, Plan, fit, grown
from mpdiag.verify.prediction import compare_with_fp16
from mpdiag.verify.rehearsal import rehearse
from mpdiag.verify.repeat import strays
from mpdiag.verify.trials import train_arm
from mpdiag.verify.verdict import judged

OVERRUN = 1.1  # no further run is begun that would end past this much of its share of the budget
GRADIENTS_SHARE = 0.08  # of the time budget: two dozen passes, where the training runs are some thousand steps
LEAST_COUNTS = 3  # steps of a prediction: what is foretold is an FP32 step and one that flushes, FP16's own is seen
NAMED_UNRUN = 6

Report = Callable[[str], None]


@dataclass
class VerificationRun:
    """A verification in the making. on_progress is called after each trial and each measurement."""

    job: Job
    advice: Advice
    device: torch.device
    higher_is_better: Mapping[str, bool] | bool = True
    on_progress: Callable[[], None] = lambda: None
    trials: list[Trial] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    prediction: Prediction | None = None
    prediction_reason: str | None = "not measured: the verification ended before it"
    prediction_cut: tuple[str, ...] = ()
    costs: CostRun | None = None
    gradients: GradientCheck = NO_GRADIENT_CHECK
    halvings: int = 0
    _halved_note: tuple[str, ...] = ()
    _spent: dict[str, float] = field(default_factory=dict)
    missing: str = "the verification ended before it"
    selftest: SelfTest | None = None  # where two plain FP32 runs differed, FP32 is trained once more at the end
    again: Trial | None = None  # that run, of the first seed
    trained: bool = False  # every run that the verdict on accuracy rests on has ended; costs may be missing

    def record(self, interrupted: bool = False) -> Verification:
        """What has been found so far, judged; runs that were interrupted are inconclusive."""
        missing = ON_THE_CPU if self.device.type != "cuda" else self.missing
        costs = self.costs.record() if self.costs is not None else Costs.absent(missing)
        trials = tuple(with_costs(self.trials, costs))
        comparisons = compare_arms(trials, self.higher_is_better, self.job.margins)
        arms = [t.arm for t in trials] + [each.arm for each in (costs.timing.arms if costs.timing else ())]
        comparisons += tuple(cost_comparisons(costs, BASELINE, list(dict.fromkeys(arms))))
        found = Verification(
            trials,
            comparisons,
            "inconclusive",
            "FP16 was not trained",
            self.prediction,
            self.prediction_reason,
            (*self.prediction_cut, *self.cut, *(self.costs.cut if self.costs else ()), *self._metric_notes()),
            curves=curve_bands(trials),
            controls=control_outcomes(comparisons),
            costs=costs,
            gradients=self.gradients,
        )
        if interrupted and not self.trained:
            return replace(found, reason="the verification was stopped before its end")
        baseline = next((t for t in trials if self.again and (t.arm, t.seed) == (BASELINE, self.again.seed)), None)
        if self.again is not None and baseline is not None:
            found = replace(found, strays=strays(baseline, self.again, comparisons))
        return judged(found, self.advice, self.selftest)

    def _metric_notes(self) -> tuple[str, ...]:
        measured = (name for trial in self.trials for name in trial.metric or {})
        return metric_notes(measured, self.job.margins, self.job.better)

    def predict(
        self, capture: Capture, seed: int, steps: int, seconds: float = math.inf, pace_seconds: float = 0.0
    ) -> None:
        """Compare what the FP32 counts foretell with what FP16 does, after 0 and after `steps` FP32 steps.

        seconds: for all of it; what does not fit is cut and named. pace_seconds: a counted step's, 0 where not known.
        """
        if LEAST_COUNTS * pace_seconds > seconds:
            needs = f"it takes at least {short(LEAST_COUNTS * pace_seconds)}"
            self.prediction_reason = f"not measured: {needs}, the time budget has {short(seconds)} for it"
            return
        deadline = Deadline(seconds)
        scale = self.advice.loss_scale
        k = scale.log2_scale if scale.log2_scale is not None else scale.upper_log2
        types = {(table.kind, table.name): table.amp_dtype for table in capture.tables}
        start = self.job.start(seed, steps)
        try:
            scales = tuple(dict.fromkeys((0, k or 0)))
            found = compare_with_fp16(self.job, start, self.device, types, scales, steps, deadline)
        except MpdiagError as error:
            self.prediction_reason = f"not measured: {error.message}"
            return
        none = f"not measured: {deadline.cut[-1]}" if deadline.cut else "no tensor is FP16 under autocast"
        self.prediction, self.prediction_reason = found, None if found.tensors else none
        self.prediction_cut = tuple(f"prediction: {line}" for line in deadline.cut) if found.tensors else ()

    def run(
        self, seed: int, steps: int, seeds: int, budget_seconds: float, report: Report, asked: CostsAsked | None = None,
        spent: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Train every arm for every seed (seed by seed, so that pairs are complete), then measure costs on a GPU.

        budget_seconds: what is left of the time budget. spent: on what the rest went, seconds by its words.
        """
        self._spent = dict(spent or {})
        try:
            self._run(seed, steps, seeds, budget_seconds, report, asked or CostsAsked())
        except BaseException:
            if self.costs is not None:
                self.costs.stop()
            end_children()
            raise

    def _run(self, seed: int, steps: int, seeds: int, budget_seconds: float, report: Report, asked: CostsAsked) -> None:
        began = time.perf_counter()
        arms, left_out = arms_for(self.advice.loss_scale, self.device, self.advice.plan)
        measures = self.device.type == "cuda" and asked.costs
        if self.device.type == "cuda" and not asked.costs:
            self.missing = "not asked for: --no-costs"
        while True:
            self.cut[:] = [*left_out, *self._halved_note]  # what a failed attempt cut is not true now
            try:
                plan = self._train(arms, seed, steps, seeds, began, budget_seconds, asked if measures else None, report)
                break
            except MpdiagError as error:
                if error.slug != "out-of-memory" or not self._halve(seed, error.message):
                    raise
        self.trained = True
        if self.costs is not None:
            left = budget_seconds - (time.perf_counter() - began)
            self.costs.run(self._start(seed, plan.steps), max(left, 0.0), report)

    def _start(self, seed: int, steps: int) -> Start:
        """A seed's start, its batches cut in half as often as memory asked for."""
        start = self.job.start(seed, steps)
        for _ in range(self.halvings):
            start = halved(start) or start
        return start

    def _halve(self, seed: int, why: str) -> bool:
        """Begin again with half the batch, for all arms alike; False where it cannot be halved."""
        if self.halvings >= MAX_HALVINGS or halved(self._start(seed, 1)) is None:
            return False
        self.halvings += 1
        self.trials.clear()
        self._halved_note = (f"every arm trains on 1/{2**self.halvings} of the batch: {why}",)
        if self.costs is not None:  # its processes measure the larger batch, and hold the memory that was missing
            self.costs.stop()
            self.costs = None
        release_memory()
        return True

    def _train(
        self, arms: list[Arm], seed: int, steps: int, seeds: int, began: float, whole_seconds: float,
        asked: CostsAsked | None, report: Report,
    ) -> Plan:  # fmt: skip
        """The training runs. asked: what is measured after them, None for nothing."""
        budget_seconds = (TRAINING_SHARE if asked else 1.0) * whole_seconds
        pace = rehearse(self.job, self._start(seed, 1), arms, self.device)
        self._check_gradients(arms, seed, pace, GRADIENTS_SHARE * whole_seconds)
        used = time.perf_counter() - began
        left = max(budget_seconds - used, 0.0)
        spent = {
            **self._spent,
            "trying out FP32 and FP16 and their first gradients took": used,
            "the costs have": whole_seconds - budget_seconds,
        }
        words = left_of(whole_seconds + sum(self._spent.values()), left, spent)
        plan = fit(arms, steps, seeds, pace, left, words)
        self.cut += plan.cut
        if asked:
            self.costs = CostRun(self.job, plan.arms, self.device, seed, self.on_progress, pace, asked)
            first = self._start(seed, 1)
            samples = samples_in(first.batch(0), first.batch_dim)
            self.costs.begin_memory_beside(samples, whole_seconds, report)
        seconds_of = {
            arm.name: pace.besides(arm.name, arm.precision) + plan.steps * pace.of(arm.name, arm.precision)
            for arm in plan.arms
        }

        def over(needs_seconds: float) -> bool:
            return time.perf_counter() - began + needs_seconds > OVERRUN * budget_seconds

        for index in range(seeds):  # also beyond the plan, where the runs turn out quicker than the rehearsal
            owed = {name: seconds_of[name] for name in (BASELINE, FP16)}  # the pair without which a seed says nothing
            wanted = owed if index < plan.seeds else seconds_of  # beyond the plan, a seed with all its arms
            if index > 0 and over(pace.build_seconds + sum(wanted.values())):
                break  # before the batches of another seed are drawn
            start = self._start((seed + index) % 2**64, plan.steps)
            self.job.note_repeats(start, plan.steps)
            for arm in plan.arms:
                if arm.name not in owed and over(seconds_of[arm.name] + sum(owed.values())):
                    continue  # a quicker one may still fit
                of = max(plan.seeds, index + 1)
                report(f"verify {arm.name}, seed {start.seed} ({index + 1} of {of}), {plan.steps} steps")
                ran = time.perf_counter()
                self.trials.append(train_arm(self.job, arm, start, plan.steps, self.device))
                seconds_of[arm.name] = time.perf_counter() - ran
                owed.pop(arm.name, None)
                self.on_progress()
        self._repeat(seed, plan, report, over(pace.build_seconds + seconds_of[BASELINE]))
        ran_plan = grown(plan, len({trial.seed for trial in self.trials}), seeds)
        self.cut[:] = [*(line for line in self.cut if line not in plan.cut), *ran_plan.cut]
        self._note_unrun(ran_plan, seed)
        return ran_plan

    def _repeat(self, seed: int, plan: Plan, report: Report, late: bool) -> None:
        """Train FP32 once more, where two runs of it differed before anything else ran."""
        if self.selftest is None or not self.selftest.control or not self.trials:
            return
        if late:
            self.cut.append("whether FP32 repeats itself: not run, the time budget was used up")
            return
        report(f"verify {BASELINE} again, seed {seed}: two runs of this job differ")
        baseline = next(arm for arm in plan.arms if arm.name == BASELINE)
        self.again = train_arm(self.job, baseline, self._start(seed, plan.steps), plan.steps, self.device)

    def _check_gradients(self, arms: list[Arm], seed: int, pace: Pace, seconds: float) -> None:
        """Compare the arms' first gradients with FP32's, if that fits into so many seconds."""
        checked = arms_to_check(arms, self.device)
        batches, why = affordable(checked, pace, seconds)
        if not batches:
            self.gradients = GradientCheck(reason=why)
            return
        try:
            self.gradients = check_gradients(self.job, self._start(seed, batches), checked, self.device, batches)
        except Exception as error:  # nobody asked for it: it ends nothing
            release_memory()
            self.gradients = GradientCheck(reason=f"not measured: {safe_text(error)}")

    def _note_unrun(self, plan: Plan, seed: int) -> None:
        """Name the runs that were planned and not begun."""
        run = {(trial.arm, trial.seed) for trial in self.trials}
        unrun = [
            f"{arm.name} with seed {(seed + index) % 2**64}"
            for index in range(min(plan.seeds, len(run) + 1))  # of the seeds after that none was begun
            for arm in plan.arms
            if (arm.name, (seed + index) % 2**64) not in run
        ]
        total = len(plan.arms) * plan.seeds - len(run)
        if total:
            named = ", ".join(unrun[:NAMED_UNRUN]) + (f" and {total - NAMED_UNRUN} more" if total > NAMED_UNRUN else "")
            self.cut.append(f"not run, the time budget was used up: {named}")
