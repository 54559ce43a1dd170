"""The arms of a verification, the plan within its budget, and one arm's run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from arm_samples import SCALE
from mpdiag.diagnosis import LossScaleAdvice, Trial
from mpdiag.errors import UserCodeError
from mpdiag.plan import IslandPlan
from mpdiag.settings import MIN_VERIFY_STEPS
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import Precision
from mpdiag.verify.arms import Arm, arms_for
from mpdiag.verify.deadline import left_of
from mpdiag.verify.plan import CUT_FIRST, Pace, Plan, fit
from mpdiag.verify.trials import train_arm

CPU = torch.device("cpu")
INF = math.inf


# the arms


def names(advice: LossScaleAdvice) -> list[str]:
    return [arm.name for arm in arms_for(advice, CPU)[0]]


def arm_named(name: str, advice: LossScaleAdvice = SCALE) -> Arm:
    return next(arm for arm in arms_for(advice, CPU)[0] if arm.name == name)


def test_the_arms_on_a_cpu():
    arms, left_out = arms_for(SCALE, CPU)
    assert [a.name for a in arms] == ["fp32", "fp16", "fp16-unscaled", "bf16", "fp16-pure"]
    assert [a.name for a in arms if a.control] == ["fp16-unscaled", "fp16-pure"]
    assert left_out == ["arm fp32-configured: left out, because your settings already compute FP32 in full"]


def test_settings_that_are_not_ieee_get_an_arm_of_their_own():
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        arms, left_out = arms_for(SCALE, CPU)
    finally:
        matmul.fp32_precision = before
    configured = next(a for a in arms if a.name == "fp32-configured")
    assert "mkldnn.matmul=bf16" in configured.precision.name
    assert (configured.precision.autocast, configured.precision.ieee) == (None, False)
    assert left_out == []


def test_the_baseline_is_ieee_fp32_and_comes_first():
    first = arms_for(SCALE, CPU)[0][0]
    assert (first.name, first.precision) == ("fp32", Precision("FP32", ieee=True))


def test_fp16_starts_at_the_recommended_scale():
    precision = arm_named("fp16").precision
    assert (precision.autocast, precision.log2_scale, precision.growth_interval) == (torch.float16, 14, 2000)


def test_fp16_grows_at_the_recommended_interval():
    assert arm_named("fp16", replace(SCALE, growth_interval=8000)).precision.growth_interval == 8000


def test_a_static_scale_never_grows():
    advice = replace(SCALE, mode="static", growth_interval=None)
    assert arm_named("fp16", advice).precision.growth_interval == 10**9


def test_where_no_scale_is_feasible_fp16_starts_at_the_upper_end():
    advice = replace(SCALE, log2_scale=None, mode="none", lower_log2=18, upper_log2=1)
    assert arm_named("fp16", advice).precision.log2_scale == 1


def test_where_no_scale_is_needed_fp16_trains_without_one_and_needs_no_unscaled_control():
    advice = replace(SCALE, log2_scale=0, mode="none", growth_interval=None)
    arms, left_out = arms_for(advice, CPU)
    assert [a.name for a in arms] == ["fp32", "fp16", "bf16", "fp16-pure"]
    assert arms[1].precision.log2_scale is None
    assert "arm fp16-unscaled: left out, because no loss scale is recommended" in left_out


def test_a_dynamic_scale_of_one_still_has_a_scaler():
    assert arm_named("fp16", replace(SCALE, log2_scale=0)).precision.log2_scale == 0


def test_where_no_gradient_was_seen_fp16_trains_without_a_scale():
    advice = LossScaleAdvice(None, "none", None, None, {}, None, None, None, None, None, "none seen")
    assert names(advice) == ["fp32", "fp16", "bf16", "fp16-pure"]


def test_the_other_arms_have_no_scale():
    assert arm_named("bf16").precision == Precision("BF16 autocast", torch.bfloat16)
    assert arm_named("fp16-unscaled").precision.log2_scale is None
    assert arm_named("fp16-pure").precision.pure is True


# the plan


def plan(steps: int, seeds: int, budget: float, a_step: float = 1.0) -> Plan:
    """All five arms at `a_step` seconds a step each."""
    return fit(arms_for(SCALE, CPU)[0], steps, seeds, Pace({"fp32": a_step, "fp16": a_step}), budget)


def kept(found: Plan) -> list[str]:
    return [a.name for a in found.arms]


ALL_ARMS = ["fp32", "fp16", "fp16-unscaled", "bf16", "fp16-pure"]


def test_a_plan_within_its_budget_is_not_cut():
    found = plan(100, 3, budget=1500.0)
    assert (kept(found), found.steps, found.seeds, found.cut) == (ALL_ARMS, 100, 3, ())


def test_steps_are_cut_first():
    found = plan(100, 3, budget=750.0)
    assert (kept(found), found.steps, found.seeds) == (ALL_ARMS, 50, 3)
    assert found.cut == ("only 50 of 100 steps were trained: the time budget is 750 s",)


def test_then_seeds():
    # three seeds would leave 8 steps; two leave 12
    found = plan(100, 3, budget=120.0)
    assert (kept(found), found.steps, found.seeds) == (ALL_ARMS, 12, 2)
    assert found.cut == (
        "only 12 of 100 steps were trained: the time budget is 120 s",
        "only 2 of 3 seeds were run: the time budget was too short",
    )
    assert (plan(100, 3, 90.0).steps, plan(100, 3, 90.0).seeds) == (18, 1)


def test_ten_steps_are_enough_to_keep_three_seeds_and_twenty_every_seed():
    assert (plan(100, 3, 150.0).steps, plan(100, 3, 150.0).seeds) == (10, 3)
    assert (plan(100, 5, 500.0).steps, plan(100, 5, 500.0).seeds) == (20, 5)
    assert (plan(100, 5, 400.0).steps, plan(100, 5, 400.0).seeds) == (20, 4)
    assert (plan(100, 5, 200.0).steps, plan(100, 5, 200.0).seeds) == (13, 3)


def test_then_arms_least_needed_first():
    # 20 s: five arms 4 steps, four arms 5
    found = plan(100, 3, budget=20.0)
    assert (kept(found), found.steps, found.seeds) == (["fp32", "fp16", "fp16-unscaled", "bf16"], 5, 1)
    assert found.cut[0] == "arm fp16-pure: not run, the time budget is 20 s"


def test_fp32_and_fp16_are_kept_even_over_budget():
    found = plan(100, 3, budget=1.0)
    assert (kept(found), found.steps, found.seeds) == (["fp32", "fp16"], MIN_VERIFY_STEPS, 1)
    assert len(found.cut) == 5


def test_a_plan_of_islands_comes_before_plain_fp16_and_is_kept_over_budget():
    islands = IslandPlan(("fc",), True, True, 12, "dynamic", 2000, 3, 0.5, False)
    arms, _ = arms_for(SCALE, CPU, islands)
    found = fit(arms, 100, 3, Pace({"fp32": 1.0, "fp16": 1.0}), 1.0)
    assert (kept(found), found.steps, found.seeds) == (["fp32", "fp16-plan", "fp16"], MIN_VERIFY_STEPS, 1)


def test_the_other_arms_cost_what_fp16_costs():
    found = fit(arms_for(SCALE, CPU)[0], 100, 1, Pace({"fp32": 1.0, "fp16": 0.25}), 100.0)
    assert found.steps == 50  # 1 + 4 * 0.25 = 2 s a step


def test_what_a_run_costs_besides_its_steps_is_taken_off_the_budget():
    pace = Pace({"fp32": 1.0, "fp16": 1.0}, build_seconds=6.0, first_step_seconds=1.0, evaluate_seconds=3.0)
    assert fit(arms_for(SCALE, CPU)[0], 100, 1, pace, 250.0).steps == 40  # less 5 runs of 10 s, at 5 s a step
    # of 520 s each of two seeds has 260, less 50, less 3 for half of the model that gives the second its weights
    assert fit(arms_for(SCALE, CPU)[0], 100, 2, pace, 520.0).steps == 41


def test_a_metric_takes_no_longer_in_an_arm_whose_steps_do_for_it_may_compute_nothing():
    pace = Pace({"fp32": 1.0, "fp16": 3.0}, build_seconds=1.0, first_step_seconds=0.5, evaluate_seconds=2.0)
    assert [pace.besides(arm.name, arm.precision) for arm in arms_for(SCALE, CPU)[0][:2]] == [3.5, 3.5]


def test_what_is_cut_is_told_in_the_words_of_the_budget_that_was_asked_for():
    words = left_of(27.3, 0.781045, {"the prediction took": 23.02, "the search of FP32 islands took": 0.0})
    assert words == "the time budget of 27.3 s had 0.8 s left for training (the prediction took 23 s)"
    found = fit(arms_for(SCALE, CPU)[0], 100, 3, Pace({"fp32": 0.01, "fp16": 0.01}), 0.781045, words)
    assert found.cut[0] == f"only 15 of 100 steps were trained: {words}"


def test_a_job_too_quick_to_time_is_not_cut():
    assert plan(100, 3, budget=60.0, a_step=0.0).cut == ()


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_short_verification_within_its_budget_is_not_cut(steps):
    found = plan(steps, 3, budget=1e6)
    assert (kept(found), found.steps, found.seeds, found.cut) == (ALL_ARMS, steps, 3, ())


PLANS = (st.integers(MIN_VERIFY_STEPS, 500), st.integers(1, 8), st.floats(0.1, 5000), st.floats(0.001, 5))


def seconds(found: Plan, a_step: float) -> float:
    return len(found.arms) * found.steps * found.seeds * a_step


@settings(max_examples=100, deadline=None)
@given(*PLANS)
def test_a_plan_keeps_its_budget_unless_it_is_the_least_there_is(steps, seeds, budget, a_step):
    found = plan(steps, seeds, budget, a_step)
    least = kept(found) == ["fp32", "fp16"] and found.steps == MIN_VERIFY_STEPS and found.seeds == 1
    assert least or seconds(found, a_step) <= budget * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(*PLANS)
def test_everything_that_is_cut_is_named(steps, seeds, budget, a_step):
    found = plan(steps, seeds, budget, a_step)
    text = " ".join(found.cut)
    assert [name for name in CUT_FIRST if f"arm {name}:" in text] == [
        n for n in CUT_FIRST if n in ALL_ARMS and n not in kept(found)
    ]
    assert (f"of {steps} steps" in text) == (found.steps < steps)
    assert (f"of {seeds} seeds" in text) == (found.seeds < seeds)


@settings(max_examples=100, deadline=None)
@given(*PLANS)
def test_nothing_is_cut_that_the_budget_allows(steps, seeds, budget, a_step):
    found = plan(steps, seeds, budget, a_step)
    if 5 * steps * seeds * a_step <= budget * (1 - 1e-9):
        assert found.cut == ()


# one arm's run


def one_weight() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    return model


def mean_output(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).float().mean()


def job(compute_loss: Callable[[nn.Module, Any], Any] = mean_output, evaluate: Any = None) -> Job:
    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, compute_loss(model, batch)

    return Job(
        name="tiny",
        source="tiny.py",
        build_model=one_weight,
        train_batches=lambda: [torch.ones(1, 1), torch.ones(1, 1) * 2],
        losses=losses,
        build_optimizers=lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=0.25)},
        evaluate=evaluate,
    )


FP32 = Arm("fp32", Precision("FP32", ieee=True))


def fp16(log2_scale: int | None) -> Arm:
    return Arm("fp16", Precision("FP16 autocast", torch.float16, log2_scale=log2_scale))


def train(the_job: Job, arm: Arm = FP32, steps: int = 4, **more: Any) -> Trial:
    return train_arm(the_job, arm, the_job.start(0, steps), steps, CPU, **more)


def test_an_arm_records_every_loss_in_order_and_starts_its_batches_anew():
    # w goes 0.5, 0.25, -0.25, -0.5; batches 1, 2, 1, 2
    assert train(job()).losses == (0.5, 0.5, -0.25, -1.0)


def test_a_trial_says_what_it_was():
    found = train(job())
    assert (found.arm, found.precision, found.seed, found.steps, found.emulated) == ("fp32", "FP32", 0, 4, False)
    assert train(job(), fp16(4)).emulated is True


def test_the_steps_a_scale_too_high_skips_are_counted():
    # the weight's gradient is scale times input, and inputs are 1, 2, 1, 2, 1: it overflows FP16 from 2^16 on
    found = train(job(), fp16(17), steps=5)
    assert found.skipped_steps == 3
    assert found.loss_scales_log2 == (16.0, 15.0, 15.0, 14.0, 14.0)
    assert found.final_log2_scale == 14.0
    assert found.losses == (0.5, 1.0, 0.5, 0.5, 0.25)  # the weight stays where it is while steps are skipped


def test_a_scale_that_fits_skips_nothing():
    found = train(job(), fp16(10))
    assert (found.skipped_steps, found.final_log2_scale) == (0, 10.0)
    assert "skipped_steps" not in found.not_measured


@pytest.mark.parametrize("arm", [FP32, fp16(None)])
def test_an_arm_without_a_scale_has_no_skipped_steps_and_says_why(arm):
    found = train(job(), arm)
    assert (found.skipped_steps, found.final_log2_scale, found.loss_scales_log2) == (None, None, None)
    assert "without a loss scale" in found.not_measured["skipped_steps"]
    assert "without a loss scale" in found.not_measured["final_log2_scale"]


def failing_at(step: int) -> Callable[[nn.Module, Any], torch.Tensor]:
    calls = []

    def compute_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        calls.append(batch)
        if len(calls) == step:
            raise RuntimeError("no kernel for Half")
        return mean_output(model, batch)

    return compute_loss


def test_a_run_that_fails_keeps_the_losses_until_then():
    found = train(job(failing_at(3), evaluate=lambda model: {"accuracy": 1.0}), fp16(None))
    assert found.losses == (0.5, 0.5)
    assert (found.steps, found.metric) == (2, None)
    assert "no kernel for Half" in found.error
    assert found.not_measured["metric"] == "the run failed"


def test_a_run_that_fails_at_once_is_a_trial_without_losses():
    found = train(job(failing_at(1)), fp16(None))
    assert (found.losses, found.steps) == ((), 0)
    assert "no kernel for Half" in found.error


@pytest.mark.parametrize("step", [1, 3])
def test_what_the_users_code_raises_in_the_baseline_is_raised(step):
    # a fault of the job, not of mixed precision
    with pytest.raises(UserCodeError, match="no kernel for Half"):
        train(job(failing_at(step)), FP32)


def test_the_metric_is_the_users():
    found = train(job(evaluate=lambda model: {"weight": model.weight.item()}))
    assert found.metric == {"weight": -1.0}
    assert (found.error, "metric" in found.not_measured) == (None, False)


def test_a_job_without_a_metric_says_so():
    found = train(job())
    assert found.metric is None
    assert found.not_measured["metric"] == "the target defines no evaluate(model)"


def no_test_set(model: nn.Module) -> dict[str, float]:
    raise ValueError("no test set")


def test_a_metric_that_fails_is_not_measured_and_the_losses_still_count():
    found = train(job(evaluate=no_test_set), fp16(None))
    assert found.losses == train(job(), fp16(None)).losses
    assert (found.error, found.metric, found.steps) == (None, None, 4)
    assert "no test set" in found.not_measured["metric"]


def test_a_metric_that_fails_in_the_baseline_is_raised():
    with pytest.raises(UserCodeError, match="no test set"):
        train(job(evaluate=no_test_set), FP32)


def test_a_loss_that_is_not_finite_is_recorded_and_does_not_end_the_run():
    found = train(job(lambda model, batch: mean_output(model, batch) / 0.0))
    assert found.steps == 4
    assert found.losses[0] == INF


def test_costs_have_no_number_on_a_cpu_and_say_why():
    found = train(job())
    for name in ("peak_memory_bytes", "step_time_ms", "tensor_core", "energy_joules_per_sample"):
        assert getattr(found, name) is None
        assert found.not_measured[name] == "needs a CUDA GPU; this run was on the CPU"


def test_each_step_is_announced():
    seen: list[int] = []
    train(job(), on_step=lambda: seen.append(1))
    assert len(seen) == 4
