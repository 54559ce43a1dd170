"""Costs against FP32's: which record a ratio comes from, its interval and verdict, and every reason there is none."""

from dataclasses import replace

import pytest

from arm_samples import trial
from mpdiag.costs.energy import EnergyUse
from mpdiag.costs.gpu import GpuSharing
from mpdiag.costs.memory import MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.costs.tensor_cores import Calibration, GpmEvidence
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.measure.energy import ArmWindows, energy_from, gpm_from
from mpdiag.verify.block_ratio import ratio_interval
from mpdiag.verify.cost_ratios import (
    ENERGY,
    PEAK_MEMORY,
    STEP_TIME,
    TENSOR_CORE,
    compare_step_times,
    cost_comparisons,
    with_costs,
)
from mpdiag.verify.energy_stage import with_left_out

GB = 10**9


def time(arm, *blocks, reason=None):
    ms = blocks[0] if blocks else None
    return ArmTime(arm, arm, ms, (9.0, 11.0) if ms else None, ms, blocks, 10 * len(blocks), reason=reason)


def timing(*arms, control=(10.0, 10.1, 10.0)):
    return Timing(arms, time("again", *control), 32, 3, True, 1.0)


def joules(arm, *windows, reason=None):
    told = [each for each in windows if each is not None]
    mean = sum(told) / len(told) if told else None
    return EnergyUse(arm, mean, None, None, len(told), 15.0, None, reason, by_window=windows)


def measured(**changed):
    whole = Costs(
        timing=timing(time("fp32", 10.0, 10.1, 9.9), time("fp16", 5.0, 5.1, 4.9), time("tf32", 7.0, 7.0, 7.0)),
        memory=(MemoryUse("fp32", "FP32", 8 * GB, 9 * GB), MemoryUse("fp16", "FP16", 6 * GB, 7 * GB)),
        energy=(joules("fp32", 0.49, 0.50, 0.51), joules("fp16", 0.198, 0.2, 0.202)),
        gpm=(GpmEvidence("fp16", True, 0.3, 0.4, 0.38, 0.04, 6.0, {"any_tensor": 0.3, "sm": 0.75}),),
    )
    return replace(whole, **changed)


def of(costs, quantity, arm="fp16"):
    return next(c for c in cost_comparisons(costs, "fp32", ["fp32", arm]) if c.quantity == quantity)


def test_a_step_time_ratio_is_the_geometric_mean_of_paired_blocks_with_its_interval():
    found = of(measured(), STEP_TIME)
    assert found.difference == pytest.approx(0.5, rel=0.01)
    assert found.interval[0] < found.difference < found.interval[1] < 0.6
    assert (found.verdict, found.reason, found.is_ratio) == ("better", None, True)
    assert found.baseline_value == pytest.approx((10.0 * 10.1 * 9.9) ** (1 / 3))
    assert found.candidate_value == pytest.approx((5.0 * 5.1 * 4.9) ** (1 / 3))


def test_two_step_times_and_their_ratio_say_the_same_even_where_a_block_was_lost():
    lost = timing(time("fp32", 10.0, 10.4, 14.0, 10.2), time("fp16", 10.1, 10.5, None, 10.3))
    found = of(measured(timing=lost), STEP_TIME)
    assert found.candidate_value / found.baseline_value == pytest.approx(found.difference)
    assert found.baseline_value == pytest.approx((10.0 * 10.4 * 10.2) ** (1 / 3))  # without the round of the lost one
    assert found.difference > 1


def test_an_arm_that_is_only_timed_has_a_step_time_and_reasons_for_the_rest():
    assert of(measured(), STEP_TIME, "tf32").verdict == "better"
    assert of(measured(memory_reason="not one of the arms"), PEAK_MEMORY, "tf32").reason == "not one of the arms"


def test_a_noisy_machine_tells_what_is_clear_of_its_noise_and_shows_the_rest():
    fp32, again = (10.0, 10.2, 9.8, 10.1, 9.9), (11.0, 9.9, 10.8, 10.2, 10.9)
    slow, near = time("fp16", 14.0, 13.2, 13.9, 14.2, 13.5), time("bf16", 10.9, 10.8, 11.2, 10.7, 11.0)
    costs = measured(timing=timing(time("fp32", *fp32), slow, near, control=again))
    found = of(costs, STEP_TIME)
    assert (found.verdict, found.reason) == ("worse", None)
    assert found.interval[0] > 1.25
    found = of(costs, STEP_TIME, "bf16")
    assert (found.verdict, found.difference) == ("inconclusive", pytest.approx(1.09, abs=0.01))
    assert found.reason == "FP32 against itself strays by up to 13.7% here, and the interval is not clear of that"
    assert against(costs, "fp32")["again"].reason.endswith("here: too noisy to tell small differences")


def test_a_noisy_machine_never_says_that_two_arms_are_equal():
    fp32 = (10.0, 10.2, 9.8, 10.1, 9.9)
    again = (11.0, 9.9, 10.8, 10.2, 10.9)
    assert of(measured(timing=timing(time("fp32", *fp32), time("fp16", *fp32), control=again)), STEP_TIME).verdict == (
        "inconclusive"
    )


def test_without_enough_blocks_of_fp32_against_itself_no_ratio_is_told():
    arms = measured().timing.arms
    found = of(measured(timing=timing(*arms, control=(10.0, None, 10.1))), STEP_TIME)
    assert (found.verdict, found.reason) == (
        "inconclusive",
        "FP32 against itself has too few blocks to tell the machine's noise",
    )
    assert found.interval is not None


BROKE = "RuntimeError: CUDA error at step 40"


@pytest.mark.parametrize("which", ["fp32", "fp16", "again"])
def test_an_arm_that_raised_halfway_is_shown_and_not_judged(which):
    ms = {"fp32": 10.0, "fp16": 5.0, "again": 10.0}
    taken = {name: (value,) * 3 + ((None,) * 5 if name == which else (value,) * 5) for name, value in ms.items()}
    fp32, fp16, again = (time(name, *taken[name], reason=BROKE if name == which else None) for name in ms)
    found = of(measured(timing=Timing((fp32, fp16), again, 32, 8, True, 1.0)), STEP_TIME)
    assert (found.verdict, found.difference) == ("inconclusive", pytest.approx(0.5))
    assert found.reason == f"{which} failed after 3 of 8 blocks: {BROKE}"


def test_another_arm_that_raised_halfway_undecides_no_other_ratio():
    arms = (*measured().timing.arms[:2], time("tf32", 7.0, 7.0, None, reason=BROKE))
    assert of(measured(timing=timing(*arms)), STEP_TIME).verdict == "better"


def test_a_reference_that_was_not_timed_is_the_reason_by_its_name():
    lost = "the GradScaler skipped steps in all 3 blocks"
    costs = measured(
        timing=timing(time("fp32", 10.0, 10.0, 10.0), time("fp16", reason=lost), time("bf16", 6.0, 6.0, 6.0))
    )
    assert compare_step_times(costs, "fp16", "bf16").reason == f"fp16: {lost}"


def test_a_busy_gpu_decides_nothing_about_time():
    busy = GpuSharing(1, 0.4, True, 2.5, "rule", "the GPU was busy with other work before this run")
    found = of(measured(sharing=busy), STEP_TIME)
    assert (found.verdict, found.reason) == ("inconclusive", busy.reason)


def test_a_gpu_that_was_busy_while_steps_were_timed_decides_nothing_about_time_or_energy():
    busy = GpuSharing(1, 0.4, True, 0.5, "rule", "the GPU was busy with other work before this run")
    shared = replace(measured().timing, sharing=busy, others=1)
    for costs in (measured(timing=shared), measured(timing=shared, sharing=replace(busy, busy=False, reason=None))):
        assert (of(costs, STEP_TIME).verdict, of(costs, STEP_TIME).reason) == ("inconclusive", busy.reason)
        assert (of(costs, ENERGY).verdict, of(costs, ENERGY).reason) == ("inconclusive", busy.reason)
        assert of(costs, ENERGY).interval is not None
    cut = measured(timing=shared, energy=(), energy_reason="no time")
    assert (of(cut, STEP_TIME).verdict, of(cut, ENERGY).verdict) == ("inconclusive", "not-measured")


def test_two_paired_blocks_give_no_interval_and_no_verdict():
    lost = timing(time("fp32", 10.0, 10.0, 10.0), time("fp16", 5.0, None, 5.0))
    found = of(measured(timing=lost), STEP_TIME)
    assert (found.verdict, found.interval) == ("inconclusive", None)
    assert "2 paired block(s)" in found.reason


def test_an_arm_that_failed_has_its_error():
    failed = timing(time("fp32", 10.0, 10.0, 10.0), time("fp16", reason="RuntimeError: no kernel"))
    found = of(measured(timing=failed), STEP_TIME)
    assert (found.verdict, found.reason, found.difference) == ("not-measured", "RuntimeError: no kernel", None)


def against(costs, baseline):
    found = cost_comparisons(costs, "fp32", ["fp32", "fp16"])
    return {c.candidate: c for c in found if c.quantity == STEP_TIME and c.baseline == baseline}


def test_what_was_timed_is_also_compared_with_what_users_may_have_now():
    arms = (*measured().timing.arms, time("fp32-configured", 8.0, 8.0, 8.0))
    costs = measured(timing=timing(*arms))
    assert against(costs, "tf32").keys() == {"fp16"}  # the references are not held against one another
    assert against(costs, "tf32")["fp16"].difference == pytest.approx(5 / 7, rel=0.01)
    assert against(costs, "fp32-configured")["fp16"].difference == pytest.approx(5 / 8, rel=0.01)
    assert against(costs, "tf32")["fp16"].verdict == "better"


def test_a_reference_that_was_not_timed_is_not_compared_with():
    assert against(measured(timing=timing(*measured().timing.arms[:2])), "tf32") == {}
    assert against(Costs.absent("no GPU"), "fp32")["fp16"].verdict == "not-measured"


def test_the_baseline_against_itself_is_a_comparison_too():
    found = against(measured(), "fp32")["again"]
    assert found.interval[0] < found.difference < found.interval[1]
    assert (found.verdict, found.difference) == ("equivalent", pytest.approx(1.0, abs=0.02))
    noisy = against(measured(timing=timing(*measured().timing.arms, control=(10.6, 10.7, 10.5))), "fp32")["again"]
    assert noisy.verdict == "inconclusive"


def test_peak_memory_is_the_allocators_and_exact():
    found = of(measured(), PEAK_MEMORY)
    assert (found.difference, found.verdict, found.baseline_value) == (0.75, "better", 8 * GB)


@pytest.mark.parametrize(("peak", "verdict"), [(7.95, "equivalent"), (8.2, "worse"), (7.8, "better")])
def test_memory_within_one_percent_is_equal(peak, verdict):
    memory = (MemoryUse("fp32", "FP32", 8 * GB, 9 * GB), MemoryUse("fp16", "FP16", int(peak * GB), 9 * GB))
    assert of(measured(memory=memory), PEAK_MEMORY).verdict == verdict


def test_memory_that_a_child_could_not_measure_has_the_childs_reason():
    memory = (MemoryUse("fp32", "FP32", 8 * GB), MemoryUse.absent("fp16", "FP16", "was killed by SIGKILL"))
    found = of(measured(memory=memory), PEAK_MEMORY)
    assert (found.verdict, found.reason) == ("not-measured", "was killed by SIGKILL")


def test_an_energy_ratio_is_the_geometric_mean_of_paired_windows_with_its_interval():
    found = of(measured(), ENERGY)
    assert found.difference == pytest.approx((0.198 / 0.49 * 0.2 / 0.5 * 0.202 / 0.51) ** (1 / 3))
    assert found.interval == pytest.approx(ratio_interval([0.198 / 0.49, 0.2 / 0.5, 0.202 / 0.51]))
    assert (found.verdict, found.reason) == ("better", None)
    assert found.candidate_value / found.baseline_value == pytest.approx(found.difference)


def test_what_drifts_over_the_rounds_is_not_in_the_ratio():
    # each arm's own interval is 20 % wide; of the ratio it is 1 %
    energy = (joules("fp32", 0.50, 0.52, 0.54), joules("fp16", 0.470, 0.487, 0.508))
    found = of(measured(energy=energy), ENERGY)
    assert (found.verdict, found.difference) == ("better", pytest.approx(0.939, abs=0.001))


def test_a_lost_window_of_energy_takes_its_round_out_of_both_arms():
    energy = (joules("fp32", 0.50, 0.60, None, 0.70, 0.80), joules("fp16", 0.25, 0.30, 0.35, None, 0.40))
    found = of(measured(energy=energy), ENERGY)
    assert (found.difference, found.interval) == (pytest.approx(0.5), pytest.approx((0.5, 0.5)))


def test_fewer_than_three_paired_windows_of_energy_decide_nothing():
    found = of(measured(energy=(joules("fp32", 0.5), joules("fp16", 0.2))), ENERGY)
    assert (found.verdict, found.interval, found.difference) == ("inconclusive", None, pytest.approx(0.4))
    assert found.reason == "one window an arm gives no interval"
    energy = (joules("fp32", 0.5, None, 0.5), joules("fp16", 0.2, 0.2, 0.2))
    assert of(measured(energy=energy), ENERGY).reason == "2 paired windows give no interval"


def test_energy_of_a_record_without_windows_still_has_its_ratio():
    energy = tuple(replace(use, by_window=()) for use in (joules("fp32", 0.5), joules("fp16", 0.2)))
    found = of(measured(energy=energy), ENERGY)
    assert (found.verdict, found.interval, found.difference) == ("inconclusive", None, pytest.approx(0.4))


def test_an_arm_left_out_of_the_energy_windows_has_the_real_reason_and_not_that_it_is_no_candidate():
    run = ArmWindows({"fp32": [], "fp16": []}, {"fp32": 8, "fp16": 8}, GpuSharing(0, 0.0, False, 2.5, "rule"), {})
    windows = with_left_out(run, ("fp32", "fp16", "bf16"))
    calibration = Calibration((), True, 0.04, 0.02, 0.86, "rule")
    costs = measured(
        energy=(*measured().energy, energy_from(windows)[-1]), gpm=(*measured().gpm, gpm_from(windows, calibration)[-1])
    )
    why = "left out, so that the other arms have their windows within the time budget"
    assert (of(costs, ENERGY, "bf16").verdict, of(costs, ENERGY, "bf16").reason) == ("not-measured", why)
    (found,) = with_costs([trial("bf16", 0)], costs)
    assert {key: found.not_measured[key] for key in (ENERGY, TENSOR_CORE)} == {ENERGY: why, TENSOR_CORE: why}


def test_energy_without_a_counter_says_why():
    energy = (joules("fp32", reason="no energy counter"), joules("fp16", reason="no energy counter"))
    assert of(measured(energy=energy), ENERGY).reason == "no energy counter"


def test_nothing_measured_is_never_a_number():
    for quantity in (STEP_TIME, PEAK_MEMORY, ENERGY):
        found = of(Costs.absent("needs a CUDA GPU"), quantity)
        numbers = (found.baseline_value, found.candidate_value, found.difference, found.interval, found.margin)
        assert (found.verdict, found.reason, found.seeds, numbers) == (
            "not-measured",
            "needs a CUDA GPU",
            0,
            (None,) * 5,
        )


def test_the_first_trial_of_an_arm_carries_what_its_arm_costs():
    first, second = with_costs([trial("fp16", 0), trial("fp16", 1)], measured())
    assert (first.step_time_ms, first.peak_memory_bytes) == (5.0, 6 * GB)
    assert first.energy_joules_per_sample == pytest.approx(0.2)
    assert (first.tensor_core, first.timed_steps) == ({"any_tensor": 0.3, "sm": 0.75}, 30)
    assert second.step_time_ms is None


def test_what_an_arm_lacks_has_its_reason_in_the_trial():
    costs = measured(gpm_reason="no GPM", memory=(MemoryUse.absent("fp32", "FP32", "crashed"),))
    (found,) = with_costs([trial("fp32", 0, not_measured={"step_time_ms": "old", "metric": "none"})], costs)
    assert found.not_measured == {"metric": "none", "peak_memory_bytes": "crashed", "tensor_core": "no GPM"}
