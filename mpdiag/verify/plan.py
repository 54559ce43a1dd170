"""How much of the verification fits in its time budget; what is cut is named."""

from __future__ import annotations

from dataclasses import dataclass

from mpdiag.settings import MIN_VERIFY_STEPS
from mpdiag.verify.arms import BASELINE, FP16, Arm

CUT_FIRST = ("fp16-pure", "fp32-configured", "bf16", "fp16-unscaled", "fp16-plan")  # least needed for the answer first


@dataclass(frozen=True)
class Plan:
    """What will be run. cut: one sentence for each thing left out."""

    arms: tuple[Arm, ...]
    steps: int
    seeds: int
    cut: tuple[str, ...]


def fit(
    arms: list[Arm],
    steps: int,
    seeds: int,
    step_seconds: dict[str, float],
    budget_seconds: float,
    run_seconds: float = 0.0,
) -> Plan:
    """The largest plan within the budget: fewer steps first, then fewer seeds, then fewer arms.

    step_seconds: measured seconds a step of the baseline and of FP16; other mixed arms are taken to cost as FP16.
    run_seconds: what a run costs besides its steps, building the model and evaluating the metric. A plan of one seed
    with FP32 and FP16 at the fewest steps is kept even over budget: less says nothing.
    """
    cut: list[str] = []
    kept = list(arms)
    wanted_steps, wanted_seeds = steps, seeds

    def seconds_a_step() -> float:
        return sum(step_seconds[BASELINE if a.precision.autocast is None else FP16] for a in kept)

    def affordable(count: int) -> int:
        left = budget_seconds / count - run_seconds * len(kept)
        return max(0, int(left / seconds_a_step())) if seconds_a_step() else wanted_steps

    steps = min(steps, affordable(seeds))
    while steps < min(wanted_steps, 4 * MIN_VERIFY_STEPS) and seeds > 1:
        seeds -= 1
        steps = min(wanted_steps, affordable(seeds))
    for name in CUT_FIRST:
        if steps >= min(MIN_VERIFY_STEPS, wanted_steps):
            break
        dropped = [a for a in kept if a.name == name]
        if dropped:
            kept.remove(dropped[0])
            cut.append(f"arm {name}: not run, the time budget of {budget_seconds:g} s was too short")
            steps = min(wanted_steps, affordable(seeds))
    steps = max(steps, min(MIN_VERIFY_STEPS, wanted_steps))
    if steps < wanted_steps:
        cut.append(
            f"only {steps} of {wanted_steps} steps were trained, to keep the time budget of {budget_seconds:g} s"
        )
    if seeds < wanted_seeds:
        cut.append(f"only {seeds} of {wanted_seeds} seeds were run, to keep the time budget of {budget_seconds:g} s")
    return Plan(tuple(kept), steps, seeds, tuple(cut))
