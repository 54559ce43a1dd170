"""The arm that trains with the plan's islands: its verdict, the speed it loses, and the words for both."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import report_samples as samples
from island_samples import CPU, PLAN
from mpdiag.costs.record import Costs
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.diagnosis import Advice, Comparison, Finding, LossScaleAdvice, Trial
from mpdiag.report.islands import island_sentences
from mpdiag.training.precision import Precision
from mpdiag.verify.arms import arms_for
from mpdiag.verify.block_ratio import ratio_interval
from mpdiag.verify.compare import compare_arms
from mpdiag.verify.island_search import costed
from mpdiag.verify.verdict import decide, train_with

# --- the arm, the verdict, the cost

SCALE = LossScaleAdvice(14, "dynamic", 2, 14, {}, 0.0, 0.0, 0.0, 0.0, None, "", 2000)
OVERFLOW = Finding("MP101", "activation-overflow", "error", "a", "", {}, "")
ADVICE = Advice("FP16", SCALE, (OVERFLOW,), ("a", "b"), plan=PLAN)


def test_the_plans_arm_stands_beside_plain_fp16():
    arms, _ = arms_for(SCALE, CPU, PLAN)
    assert [a.name for a in arms][:3] == ["fp32", "fp16-plan", "fp16"]
    name = "FP16 autocast, 2 module(s) in FP32"
    assert arms[1].precision == Precision(name, torch.float16, False, 12, 8000, keep_fp32=("a", "b"))
    assert arms[2].precision.keep_fp32 == ()


def test_a_plan_that_is_not_enough_is_not_trained_and_the_report_says_why():
    arms, left_out = arms_for(SCALE, CPU, replace(PLAN, enough=False, reason="because"))
    assert "fp16-plan" not in [a.name for a in arms]
    assert "arm fp16-plan: left out, because no plan was found: because" in left_out


def verdict_with(**losses: float) -> tuple[str, str, str | None]:
    trials = [
        Trial(arm.replace("_", "-"), arm, True, seed, 4, (loss + seed,) * 4)
        for arm, loss in {"fp32": 1.0, **losses}.items()
        for seed in (0, 1, 2)
    ]
    comparisons: tuple[Comparison, ...] = compare_arms(trials, True)
    return *decide(ADVICE, trials, comparisons), train_with(comparisons)


NAN = float("nan")


def test_where_plain_fp16_fails_and_the_plan_trains_the_verdict_names_the_islands():
    verdict, reason, chosen = verdict_with(fp16=NAN, fp16_plan=1.0, bf16=1.0)
    assert (verdict, chosen) == ("go-with-changes", "fp16-plan")
    assert reason.startswith("keep a, b in FP32: then FP16 (emulated CUDA policy) equals FP32 over 4 steps and 3 seeds")


def test_where_both_train_the_finding_still_asks_for_the_islands():
    verdict, reason, chosen = verdict_with(fp16=1.0, fp16_plan=1.0)
    assert (verdict, chosen) == ("go-with-changes", "fp16")
    assert reason.endswith("MP101 has to be mended first: keep a, b in FP32, which equals FP32 too")


def test_where_the_plan_fails_too_bf16_is_the_way_out():
    assert verdict_with(fp16=NAN, fp16_plan=NAN, bf16=1.0)[0::2] == ("go-with-changes", "bf16")


def timed(**blocks_ms: tuple[float, ...] | str) -> Costs:
    """What was timed in turns beside FP32; a text is why an arm was not."""
    arms = [
        ArmTime(arm, arm, None, None, None, reason=blocks)
        if isinstance(blocks, str)
        else ArmTime(arm, arm, blocks[0], None, None, blocks, len(blocks))
        for arm, blocks in (("fp32", (20.0, 20.0, 20.0)), *((a.replace("_", "-"), b) for a, b in blocks_ms.items()))
    ]
    again = ArmTime("again", "fp32", 20.0, None, None, (20.0, 20.1, 19.9), 3)
    return Costs(timing=Timing(tuple(arms), again, 8, 3, True, 1.0))


def test_the_speed_lost_is_the_arms_step_time_over_plain_fp16s_block_by_block():
    found = costed(PLAN, timed(fp16=(10.0, 11.0, 12.0), fp16_plan=(10.5, 11.6, 12.6), bf16=(9.0, 9.0, 9.0)))
    assert found.step_time_ratio == pytest.approx((1.05 * 11.6 / 11 * 1.05) ** (1 / 3))
    assert found.step_time_interval == pytest.approx(ratio_interval([1.05, 11.6 / 11, 1.05]))
    assert (found.step_time_reference, found.step_time_reason) == ("fp16", None)


def test_a_speed_lost_that_is_undecided_says_why_beside_the_ratio():
    found = costed(PLAN, timed(fp16=(10.0, 10.0, 10.0), fp16_plan=(10.1, 10.6, 10.9)))
    assert found.step_time_reason == "the interval is neither within 3% of 1 nor clear of it"
    diagnosis = SimpleNamespace(advice=SimpleNamespace(plan=found), verification=None)
    told = island_sentences(diagnosis)[-1]
    assert told.startswith("speed lost by it: a step takes 5.3 % longer than in FP16 without it (fp16), x1.053 (95 % ")
    assert told.endswith(f"); undecided: {found.step_time_reason}")


def test_where_fp16_skipped_every_step_the_speed_lost_has_no_measure():
    lost = "the GradScaler skipped steps in all 3 blocks"
    found = costed(PLAN, timed(fp16=lost, fp16_plan=(10.5, 10.5, 10.5)))
    assert (found.step_time_ratio, found.step_time_reference, found.step_time_reason) == (None, None, f"fp16: {lost}")


def test_a_plan_that_was_not_trained_keeps_saying_so():
    found = costed(PLAN, timed(fp16=(10.0, 10.0, 10.0)))
    assert found == PLAN
    assert found.step_time_reason == "not measured: the plan was not trained"


def test_on_a_cpu_the_speed_lost_is_none_with_its_reason():
    found = costed(PLAN, Costs.absent("no GPU"))
    assert (found.step_time_ratio, found.step_time_reason) == (None, "no GPU")


def test_the_words_claim_no_more_than_was_tried():
    two = replace(samples.full(), advice=replace(ADVICE, plan=PLAN), verification=None)
    told = island_sentences(two)[0]
    assert told == (
        "2 modules in FP32 cure it; none of them can be left out (tried on the first batch: 3 FP16 iterations, "
        "emulated, 0.1 s)"
    )
    cut = replace(two, advice=replace(ADVICE, plan=replace(PLAN, minimal=False)))
    assert "fewer may do" in island_sentences(cut)[0]
