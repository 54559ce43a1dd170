"""How much of the verification fits in its time budget; what is cut is named."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mpdiag.arm_names import BASELINE, BF16, FP16, FP16_PURE, FP16_UNSCALED, FP32_CONFIGURED
from mpdiag.settings import MIN_VERIFY_STEPS, SEEDS
from mpdiag.training.precision import Precision
from mpdiag.verify.arms import Arm

EASY_STEPS = 4 * MIN_VERIFY_STEPS  # kept where a seed can go for them
FEW_STEPS = 2 * MIN_VERIFY_STEPS  # ... and where fewer than three would remain: two seeds hardly give an interval
ONLY = "only {seeds} of {wanted} seeds were run"
CUT_FIRST = (FP16_PURE, FP32_CONFIGURED, BF16, FP16_UNSCALED)  # least needed for the answer first


@dataclass(frozen=True)
class Pace:
    """What a rehearsal of the baseline and of FP16 measured. step_seconds: of each, by arm.

    build_seconds: to build a model and its optimizer; first_step_seconds: what the first step takes more than a later
    one; evaluate_seconds: the metric in the baseline, 0 without one.
    """

    step_seconds: dict[str, float]
    build_seconds: float = 0.0
    first_step_seconds: float = 0.0
    evaluate_seconds: float = 0.0

    def besides(self, arm: str, precision: Precision) -> float:
        """Seconds a training run takes besides its steps, the baseline's for every arm.

        How much slower an arm's metric is than the baseline's is not known: it may be a forward pass or a file that is
        read. Where it is slower, the first seed's runs show it, and what does not fit after them is not begun.
        """
        return self.build_seconds + self.first_step_seconds + self.evaluate_seconds

    def of(self, arm: str, precision: Precision) -> float:
        """Seconds a step of any arm: FP16's for a mixed one, the baseline's for the others."""
        return self.step_seconds[arm if arm in self.step_seconds else FP16 if precision.autocast else BASELINE]


@dataclass(frozen=True)
class Plan:
    """What will be run. cut: one sentence for each thing left out."""

    arms: tuple[Arm, ...]
    steps: int
    seeds: int
    cut: tuple[str, ...]


def fit(
    arms: list[Arm], steps: int, seeds: int, pace: Pace, budget_seconds: float, budget_words: str | None = None
) -> Plan:
    """The largest plan within the budget: fewer steps first, then fewer seeds, then fewer arms.

    Seeds beyond the third go before the steps fall below EASY_STEPS, the last three before they fall below FEW_STEPS.

    A plan of one seed with FP32 and FP16 at the fewest steps is kept even over budget: less says nothing.
    budget_words: for what is cut, where these seconds are only a part of the budget that was asked for.
    """
    cut: list[str] = []

    def why() -> str:
        told = budget_words or f"the time budget is {budget_seconds:g} s"
        return "the time budget was too short" if cut else told  # in full once

    kept = list(arms)
    wanted_steps, wanted_seeds = steps, seeds

    def seconds_a_step() -> float:
        return sum(pace.of(a.name, a.precision) for a in kept)

    def affordable(count: int) -> int:
        left = budget_seconds / count - sum(pace.besides(a.name, a.precision) for a in kept)
        if count > 1:  # the weights of the other seeds come from a model each
            left -= pace.build_seconds * (count - 1) / count
        return max(0, int(min(wanted_steps, left / seconds_a_step()))) if seconds_a_step() else wanted_steps

    steps = min(steps, affordable(seeds))
    while steps < min(wanted_steps, EASY_STEPS if seeds > SEEDS else FEW_STEPS) and seeds > 1:
        seeds -= 1
        steps = min(wanted_steps, affordable(seeds))
    for name in CUT_FIRST:
        if steps >= min(MIN_VERIFY_STEPS, wanted_steps):
            break
        dropped = [a for a in kept if a.name == name]
        if dropped:
            kept.remove(dropped[0])
            cut.append(f"arm {name}: not run, {why()}")
            steps = min(wanted_steps, affordable(seeds))
    steps = max(steps, min(MIN_VERIFY_STEPS, wanted_steps))
    if steps < wanted_steps:
        cut.append(f"only {steps} of {wanted_steps} steps were trained: {why()}")
    if seeds < wanted_seeds:
        cut.append(f"{ONLY.format(seeds=seeds, wanted=wanted_seeds)}: {why()}")
    return Plan(tuple(kept), steps, seeds, tuple(cut))


def grown(plan: Plan, seeds: int, wanted_seeds: int) -> Plan:
    """The plan as it was run, where there was time for more seeds than it had; what it cut is told by them."""
    if seeds <= plan.seeds:
        return plan
    planned = ONLY.format(seeds=plan.seeds, wanted=wanted_seeds)
    told = ONLY.format(seeds=seeds, wanted=wanted_seeds)
    cut = (line.replace(planned, told) for line in plan.cut if seeds < wanted_seeds or not line.startswith(planned))
    return replace(plan, seeds=seeds, cut=tuple(cut))
