"""Modules to keep in FP32, few of them: ranked by the tables, tried in real (off CUDA: emulated) FP16 iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from mpdiag.advice.islands import described, gradient_candidates, in_forward_order, overflowing_layers
from mpdiag.advice.loss_scale import WITHOUT_SCALE, Part
from mpdiag.arm_names import FP16, FP16_PLAN
from mpdiag.costs.record import Costs
from mpdiag.diagnosis import Advice, Capture, TensorKind
from mpdiag.errors import UsageError
from mpdiag.loop import for_all_optimizers
from mpdiag.plan import NOTHING_LEFT, IslandPlan, plan_snippet
from mpdiag.target import Job, Start
from mpdiag.training.precision import FP16_AUTOCAST, emulated
from mpdiag.verify.cost_ratios import compare_step_times
from mpdiag.verify.island_trial import (
    FORWARD,
    GRADIENTS,
    IslandTrial,
    IslandTrials,
    OutOfTimeError,
    covered,
    plain_fp16,
)

MOST = 0.5  # of a module's weights: two blocks of twelve must not put the whole stack into FP32


def with_islands(
    job: Job, start: Start, device: torch.device, capture: Capture, advice: Advice, budget_seconds: float,
    report: Callable[[str], None], parts: Sequence[Part] = (),
) -> Advice:  # fmt: skip
    """The advice with the plan of FP32 islands, where something asks for one; its names are then what to keep in FP32.

    Where no set of modules is enough, the plan says why and the tables' names stay.
    """
    if not islands_wanted(capture, advice):
        return advice
    plan = search_islands(job, start, device, capture, advice, budget_seconds, report, parts)
    return replace(advice, plan=plan, keep_fp32=plan.keep_fp32 if plan.enough else advice.keep_fp32)


def islands_wanted(capture: Capture, advice: Advice) -> bool:
    """Whether something overflows or loses too much, or no scale serves all: what FP32 islands can cure."""
    plain = plain_fp16(capture, advice)
    return bool(plain.broken or plain.losing or plain.errors((*FORWARD, *GRADIENTS)))


def search_islands(
    job: Job, start: Start, device: torch.device, capture: Capture, advice: Advice, budget_seconds: float,
    report: Callable[[str], None] = lambda line: None, parts: Sequence[Part] = (),
) -> IslandPlan:  # fmt: skip
    """The plan found within a time budget; one iteration is always tried. parts: as advise() takes them."""
    plain = plain_fp16(capture, advice)
    trials = IslandTrials(job, start, device, plain, budget_seconds, bool(plain.errors(GRADIENTS)), report, parts)
    search = IslandSearch(trials, type(job.build(start, torch.device("cpu"))).__name__)
    search.run()
    return plan_of_trial(search.found, trials, search.enough, search.minimal, search.reason)


def plan_of_trial(
    found: IslandTrial, trials: IslandTrials, enough: bool, minimal: bool, reason: str | None
) -> IslandPlan:
    """The record of a search that ended with this trial."""
    names, scale = in_forward_order(found.names, found.capture), found.advice.loss_scale
    modules = tuple(described(name, found.capture) for name in names)
    # no FP16 gradient is left: nothing to scale. No scale for those that are left: null, and trained without one too
    none_needed = scale.lower_log2 is None and scale.upper_log2 is None
    train = scale.snippet or for_all_optimizers(WITHOUT_SCALE, found.capture.loop)
    counted = enough or reason == NOTHING_LEFT  # else there may be no time for it, nor a use
    share, why = trials.half_share(found) if counted else (None, "not counted: there is no plan")
    warned = [f.subject for f in found.advice.findings if f.code == "MP101" and f.severity == "warning"]
    return IslandPlan(
        keep_fp32=names,
        enough=enough,
        minimal=minimal,
        log2_scale=0 if none_needed else scale.log2_scale,
        mode=scale.mode,
        growth_interval=scale.growth_interval,
        iterations=trials.iterations,
        seconds=round(trials.seconds, 3),
        emulated=emulated(FP16_AUTOCAST, trials.device),
        near_limit=tuple(warned),
        reason=reason,
        snippet=plan_snippet(names, train, modules) if enough else None,
        backoff_factor=scale.backoff_factor,
        half_share=share,
        half_share_reason=why,
        modules=modules,
    )


@dataclass
class IslandSearch:
    """A search: `run()`, then `found` with `enough`, `minimal` and `reason` as in IslandPlan. root: the model's name.

    Layers whose FP32 numbers exceed FP16's are taken at once: the tables prove that they overflow. Then one module a
    time is added, the first that breaks an iteration, or its parent where the fault lies between modules, until the
    iteration is finite, keeps its numbers and a loss scale serves all. At last each is left out again, and stays out
    if it still works; and where two or more are most of one module, that one takes their place if it works. A set that
    holds every product is none: with it FP16 would be FP32.
    """

    trials: IslandTrials
    root: str

    def __post_init__(self) -> None:
        self.found = self.trials.plain
        self.enough = self.minimal = False
        self.reason: str | None = None

    def run(self) -> None:
        """Search until the set is minimal or the time budget ends."""
        self._search()
        if self.enough and self.trials.leaves_nothing(self.found):
            self.enough = self.minimal = False
            self.reason = NOTHING_LEFT

    def _search(self) -> None:
        if self.found.types.error is not None:
            self.reason = f"an FP16 iteration fails: {self.found.types.error}"
            return
        proven = overflowing_layers(self.found.capture)
        try:
            self._grow(proven)
            if self.enough:
                self._prune(proven)
                if self._gather():
                    self._prune(proven)
        except UsageError as error:  # a class that cannot be an island
            self.enough = self.minimal = False
            self.reason = error.message
        except OutOfTimeError:
            if self.minimal:
                return  # only whether a parent would do for several was left to try
            what = "it is not shown that none can be left out" if self.enough else "no set was found"
            budget, count = self.trials.budget_seconds, self.trials.iterations
            self.reason = f"{what}: the time budget of {budget:.3g} s ended after {count} iteration(s)"

    def _grow(self, proven: tuple[str, ...]) -> None:
        trial = self.trials.run(proven) if proven else self.found
        while not self._works(trial):
            if trial.names and trial.types.error is None and self.trials.leaves_nothing(trial):
                self.found, self.reason = trial, NOTHING_LEFT  # more islands leave no more
                return
            name = self._next(trial)
            if name is None:
                self.found = trial
                self.reason = self.reason or "nothing is left to keep in FP32 but the whole model"
                return
            trial = self.trials.run(_without_covered((*trial.names, name)))
        self.found, self.enough = trial, True

    def _prune(self, proven: tuple[str, ...]) -> None:
        for name in reversed(self.found.names):
            if name in proven or len(self.found.names) == 1:
                continue  # the tables prove that it overflows; or FP16 as it is has been seen to fail
            trial = self.trials.run(tuple(n for n in self.found.names if n != name))
            if self._works(trial):
                self.found = trial
        self.minimal = True

    def _gather(self) -> bool:
        """Try the parent of two or more that hold most of its weights; whether any took the place of its children."""
        gathered = False
        for parent in dict.fromkeys(name.rpartition(".")[0] for name in self.found.names):
            inside = [name for name in self.found.names if name.rpartition(".")[0] == parent]
            if parent and len(inside) > 1 and _share_of(parent, inside, self.found.capture) >= MOST:
                trial = self.trials.run(_without_covered((*self.found.names, parent)))
                if self._works(trial) and not self.trials.leaves_nothing(trial):
                    self.found, self.minimal, gathered = trial, False, True
        return gathered

    def _works(self, trial: IslandTrial) -> bool:
        if not trial.forward_works:
            return False
        if not self.trials.asks_gradients:  # a scale that is too high for a step is GradScaler's own to mend
            return True
        return not trial.errors(GRADIENTS) and trial.types.finite_gradients is True

    def _next(self, trial: IslandTrial) -> str | None:
        """The module to add; None where only the whole model is left, or `reason` says what else."""
        if trial.types.error is not None:
            self.reason = f"with {', '.join(trial.names)} in FP32 an FP16 iteration fails: {trial.types.error}"
            return None
        if trial.forward_works:
            ranked = gradient_candidates(trial.capture, trial.advice.loss_scale)
            return next((name for name in ranked if not covered(name, trial.names) and name != self.root), None)
        starved = set(trial.types.vanished) if trial.losing else set()  # all zero, by what it is given
        told = [name for name in trial.errors(("MP102",)) if name not in starved]
        told += [*trial.errors(("MP101",)), *trial.losing, *trial.errors(FORWARD)]
        seen = [table.name for table in trial.capture.of_kind(TensorKind.ACTIVATION)]
        known = {name for name in told if any(covered(each, (name,)) for each in seen)}  # an operator may be in none
        first = next(iter([*trial.broken, *(name for name in told if name in known)]), None)
        if first is None:
            self.reason = "the loss itself is not finite in FP16, outside every module"
            return None
        return self._around(first, trial)

    def _around(self, name: str, trial: IslandTrial) -> str | None:
        """The module, or the nearest one around it that computes what it was given and is no island yet."""
        while name and name != self.root and (name in trial.types.fed or covered(name, trial.names)):
            name = name.rpartition(".")[0]
        return None if name == self.root else name or None


def costed(plan: IslandPlan, costs: Costs) -> IslandPlan:
    """The plan with its step time over that of FP16 without it, where both were timed: by blocks that took turns.

    FP16 that overflows in every iteration is not: its scaler skips steps, and a skipped step is shorter.
    """
    if costs.timing is not None and all(each.arm != FP16_PLAN for each in costs.timing.arms):
        return plan
    found = compare_step_times(costs, FP16, FP16_PLAN)
    if found.difference is None:
        return replace(plan, step_time_reason=found.reason)
    return replace(
        plan,
        step_time_ratio=found.difference,
        step_time_reference=FP16,
        step_time_interval=found.interval,
        step_time_reason=found.reason if found.verdict == "inconclusive" else None,
    )


def _share_of(parent: str, inside: Sequence[str], capture: Capture) -> float:
    """The share of a module's weights that some of its children hold; 0 where it has none."""
    weights = {table.name: table.elements for table in capture.of_kind(TensorKind.WEIGHT)}
    whole = sum(elements for name, elements in weights.items() if covered(name, (parent,)))
    return sum(elements for name, elements in weights.items() if covered(name, tuple(inside))) / whole if whole else 0.0


def _without_covered(names: tuple[str, ...]) -> tuple[str, ...]:
    """Without those inside another: autocast is off there already."""
    return tuple(n for n in names if not covered(n, tuple(other for other in names if other != n)))
