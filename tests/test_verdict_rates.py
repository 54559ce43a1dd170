"""How often step times are misjudged: simulated machines with noise, drift, inheritance and stalls, known truths."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mpdiag.costs.record import Costs
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.measure.turns import turns_of
from mpdiag.verify.cost_ratios import STEP_TIME, cost_comparisons

ROUNDS = 12
ARMS = ("fp32", "fp32-configured", "tf32", "fp16", "bf16", "fp16-plan")  # 5 + 2 x 3 ratios, and the control's
MACHINES = {  # standard deviations in log time: a block, the drift from turn to turn, heat inherited, an arm's own
    "quiet": {"block": 0.003, "drift": 0.002, "inherited": 0.002, "own": 0.002, "stalls": 0.0},
    "typical": {"block": 0.02, "drift": 0.002, "inherited": 0.005, "own": 0.005, "stalls": 0.0},
    "launch bound": {"block": 0.04, "drift": 0.005, "inherited": 0.02, "own": 0.01, "stalls": 0.05},
    "wild": {"block": 0.10, "drift": 0.01, "inherited": 0.02, "own": 0.01, "stalls": 0.1},
}


def timed(chance: np.random.Generator, machine: dict[str, float], truth: dict[str, float]) -> Timing:
    """One measurement of arms of known times on a machine that is not quite steady.

    drift: a random walk over all turns. inherited: what each arm leaves to whichever comes next. own: what an arm's
    place in memory costs it all the time, the control's being the baseline's. stalls: blocks half again as long.
    """
    turns = (*ARMS, "again")
    own = {name: machine["own"] * chance.standard_normal() for name in ARMS}
    left = {name: machine["inherited"] * chance.standard_normal() for name in ARMS}
    own["again"], left["again"] = own["fp32"], left["fp32"]
    blocks: dict[str, list[float]] = {name: [] for name in turns}
    drift, before = 0.0, "fp32"
    for row in turns_of(turns, ROUNDS, seed=int(chance.integers(1 << 30))):
        for name in row:
            drift += machine["drift"] * chance.standard_normal()
            log = own[name] + left[before] + drift + machine["block"] * chance.standard_normal()
            stalled = 1.5 if chance.random() < machine["stalls"] else 1.0
            blocks[name].append(10.0 * truth.get(name, 1.0) * float(np.exp(log)) * stalled)
            before = name
    made = {name: ArmTime(name, name, ms[0], None, None, tuple(ms)) for name, ms in blocks.items()}
    return Timing(tuple(made[name] for name in ARMS), made["again"], 32, ROUNDS, True, 1.0)


def verdicts(machine: str, truth: dict[str, float], times: int) -> list[dict[tuple[str, str], str]]:
    """The verdict of every ratio of times, in each of `times` measurements."""
    chance = np.random.default_rng(7)
    found = []
    for _ in range(times):
        costs = Costs(timing=timed(chance, MACHINES[machine], truth))
        ratios = [c for c in cost_comparisons(costs, "fp32", ARMS) if c.quantity == STEP_TIME]
        found.append({(c.baseline, c.candidate): c.verdict for c in ratios})
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_of_equal_arms_none_is_called_faster_or_slower(machine):
    found = verdicts(machine, {}, 40)
    assert {len(ratios) for ratios in found} == {5 + 1 + 2 * 3}
    wrong = sum(bool({"better", "worse"} & set(ratios.values())) for ratios in found)
    assert wrong == 0  # of 250 measurements a machine none was, but 1 on the launch-bound one: see rates()


@pytest.mark.parametrize("machine", ["quiet", "typical"])
def test_an_arm_that_takes_ten_percent_less_is_found(machine):
    found = verdicts(machine, {"fp16": 0.9}, 40)
    assert sum(ratios["fp32", "fp16"] == "better" for ratios in found) >= 38


def test_a_wild_machine_decides_nothing_even_of_an_arm_twice_as_fast():
    said = Counter(ratios["fp32", "fp16"] for ratios in verdicts("wild", {"fp16": 0.5}, 20))
    assert said["inconclusive"] >= 18
    assert set(said) <= {"inconclusive", "better"}


def test_a_quiet_machine_says_that_equal_arms_are_equal():
    found = verdicts("quiet", {}, 20)
    assert all(set(ratios.values()) == {"equivalent"} for ratios in found)


def rates(times: int = 250) -> None:
    """Print what the tests' numbers come from (minutes): `python -c "import test_verdict_rates as t; t.rates()"`."""
    for machine in MACHINES:
        wrong = sum(bool({"better", "worse"} & set(found.values())) for found in verdicts(machine, {}, times))
        print(f"{machine}: {wrong / times:.1%} of {times} measurements of equal arms misjudge any of 12 ratios")
        for ratio in (0.95, 0.9, 0.8):
            found = [v["fp32", "fp16"] for v in verdicts(machine, {"fp16": ratio}, times)]
            print(f"  x{ratio}: {Counter(found).most_common()}")
