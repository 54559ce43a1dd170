"""How often step times are misjudged: simulated machines with noise, drift, inheritance and stalls, known truths."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mpdiag.costs.energy import EnergyUse
from mpdiag.costs.record import Costs
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.measure.turns import turns_of
from mpdiag.verify.block_ratio import noise_band
from mpdiag.verify.cost_ratios import ENERGY, STEP_TIME, cost_comparisons

ROUNDS = 12
ARMS = ("fp32", "fp32-configured", "tf32", "fp16", "bf16", "fp16-plan")  # 5 + 2 x 3 ratios, and the control's
MACHINES = {  # standard deviations in log time: a block, the drift from turn to turn, heat inherited, an arm's own
    "quiet": {"block": 0.003, "drift": 0.002, "inherited": 0.002, "own": 0.002, "stalls": 0.0},
    "typical": {"block": 0.02, "drift": 0.002, "inherited": 0.005, "own": 0.005, "stalls": 0.0},
    "launch bound": {"block": 0.04, "drift": 0.005, "inherited": 0.02, "own": 0.01, "stalls": 0.05},
    "noisy": {"block": 0.08, "drift": 0.005, "inherited": 0.02, "own": 0.01, "stalls": 0.0},  # A/A: up to 10 %
    "wild": {"block": 0.10, "drift": 0.01, "inherited": 0.02, "own": 0.01, "stalls": 0.1},
}


def timed(
    chance: np.random.Generator, machine: dict[str, float], truth: dict[str, float], rounds: int = ROUNDS
) -> Timing:
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
    for row in turns_of(turns, rounds, seed=int(chance.integers(1 << 30))):
        for name in row:
            drift += machine["drift"] * chance.standard_normal()
            log = own[name] + left[before] + drift + machine["block"] * chance.standard_normal()
            stalled = 1.5 if chance.random() < machine["stalls"] else 1.0
            blocks[name].append(10.0 * truth.get(name, 1.0) * float(np.exp(log)) * stalled)
            before = name
    made = {name: ArmTime(name, name, ms[0], None, None, tuple(ms)) for name, ms in blocks.items()}
    return Timing(tuple(made[name] for name in ARMS), made["again"], 32, rounds, True, 1.0)


def verdicts(
    machine: str, truth: dict[str, float], times: int, rounds: int = ROUNDS
) -> list[dict[tuple[str, str], str]]:
    """The verdict of every ratio of times, in each of `times` measurements."""
    chance = np.random.default_rng(7)
    found = []
    for _ in range(times):
        costs = Costs(timing=timed(chance, MACHINES[machine], truth, rounds))
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


def test_the_noisy_machine_strays_from_itself_by_ten_percent():
    chance = np.random.default_rng(3)
    bands = [noise_band(timed(chance, MACHINES["noisy"], {})) for _ in range(40)]
    assert np.median(bands) == pytest.approx(0.10, abs=0.015)


@pytest.mark.parametrize(("ratio", "verdict"), [(1.35, "worse"), (1 / 1.35, "better")])
def test_on_a_noisy_machine_an_arm_that_takes_a_third_more_or_less_is_found(ratio, verdict):
    found = Counter(ratios["fp32", "fp16"] for ratios in verdicts("noisy", {"fp16": ratio}, 40))
    assert found[verdict] >= 38
    assert set(found) <= {verdict, "inconclusive"}


@pytest.mark.parametrize("machine", ["noisy", "wild"])
@pytest.mark.parametrize("rounds", [3, 5])
def test_few_rounds_of_equal_arms_on_a_noisy_machine_are_misjudged_in_less_than_five_percent(machine, rounds):
    found = verdicts(machine, {}, 60, rounds)
    wrong = sum(bool({"better", "worse", "equivalent"} & set(ratios.values())) for ratios in found)
    assert wrong / len(found) <= 0.05  # of 1000 each: see rates()


def test_even_a_wild_machine_tells_an_arm_that_is_twice_as_fast():
    said = Counter(ratios["fp32", "fp16"] for ratios in verdicts("wild", {"fp16": 0.5}, 20))
    assert said["better"] >= 18
    assert set(said) <= {"inconclusive", "better"}


def test_a_wild_machine_does_not_tell_an_arm_that_takes_ten_percent_less():
    assert {v["fp32", "fp16"] for v in verdicts("wild", {"fp16": 0.9}, 20)} == {"inconclusive"}


def test_a_quiet_machine_says_that_equal_arms_are_equal():
    found = verdicts("quiet", {}, 20)
    assert all(set(ratios.values()) == {"equivalent"} for ratios in found)


ENERGY_ARMS = ("fp32", "fp16", "bf16")


def energy_verdicts(truth: float, times: int, rounds: int, own: float = 0.005) -> list[dict[str, str]]:
    """The verdicts on energy of `times` measurements; the heat drifts by 2 % from round to round, own: of a window."""
    chance, found = np.random.default_rng(7), []
    for _ in range(times):
        by_window: dict[str, list[float]] = {name: [] for name in ENERGY_ARMS}
        drift = 0.0
        for row in turns_of(ENERGY_ARMS, rounds, seed=int(chance.integers(1 << 30))):
            for name in row:
                drift += 0.02 / len(row) ** 0.5 * chance.standard_normal()
                log = drift + own * chance.standard_normal()
                by_window[name].append((truth if name == "fp16" else 1.0) * float(np.exp(log)))
        uses = (EnergyUse(a, float(np.mean(w)), None, None, rounds, 1.0, None, by_window=tuple(w))
                for a, w in by_window.items())  # fmt: skip
        told = cost_comparisons(Costs(energy=tuple(uses)), "fp32", ENERGY_ARMS)
        found.append({c.candidate: c.verdict for c in told if c.quantity == ENERGY})
    return found


@pytest.mark.parametrize("rounds", [3, 5])
@pytest.mark.parametrize("own", [0.005, 0.02])
def test_windows_of_energy_of_equal_arms_are_called_different_in_less_than_five_percent(rounds, own):
    found = energy_verdicts(1.0, 200, rounds, own)
    assert sum(bool({"better", "worse"} & set(each.values())) for each in found) / len(found) <= 0.05


def test_a_saving_of_energy_is_found_though_the_heat_drifts():
    assert sum(each["fp16"] == "better" for each in energy_verdicts(0.9, 100, 3)) >= 90
    assert sum(each["fp16"] == "better" for each in energy_verdicts(0.9, 100, 5, own=0.02)) >= 90


def rates(times: int = 250) -> None:
    """Print what the numbers come from, in minutes: here, `python -c "import test_verdict_rates as t; t.rates()"`."""
    for machine in MACHINES:
        for rounds in (3, 5, ROUNDS):
            equal = verdicts(machine, {}, times, rounds)
            wrong = sum(bool({"better", "worse"} & set(found.values())) for found in equal)
            print(f"{machine}, {rounds} rounds: {wrong / times:.1%} of {times} equal measurements misjudge any of 12")
        for ratio in (0.95, 0.9, 0.8, 1.35):
            found = [v["fp32", "fp16"] for v in verdicts(machine, {"fp16": ratio}, times)]
            print(f"  x{ratio}: {Counter(found).most_common()}")
