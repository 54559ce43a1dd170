"""The plan of FP32 islands in words: what it leaves in FP16, what its modules are, and the scale that goes with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

import report_samples as samples
from mpdiag.diagnosis import Diagnosis
from mpdiag.plan import NOTHING_LEFT, IslandPlan, plan_snippet
from mpdiag.report.html_summary import boxes
from mpdiag.report.islands import island_sentences
from mpdiag.report.scale_words import plan_scale_lines

PLAN = IslandPlan(
    ("0", "2"), True, True, 5, "dynamic", 2000, 3, 0.1, True, half_share=0.75, half_share_reason=None,
    modules=("Linear 24->64", "Linear 64->64"), snippet=plan_snippet(("0", "2"), "train()"),
)  # fmt: skip
LEFT = "of the FLOPs of matrix products and convolutions are left in FP16"


def with_plan(plan: IslandPlan, train_with: str = "fp16-plan") -> Diagnosis:
    whole = samples.full()
    assert whole.advice is not None
    assert whole.verification is not None
    advice = replace(whole.advice, plan=plan, keep_fp32=plan.keep_fp32, format_choice=None)
    return replace(whole, advice=advice, verification=replace(whole.verification, train_with=train_with))


@pytest.mark.parametrize(
    ("share", "why", "told"),
    [
        (0.75, None, f"75.0 % {LEFT}"),
        (0.25, None, f"25.0 % {LEFT}, so most of the work stays in FP32"),
        (None, "the model is compiled", "share of the products' FLOPs left in FP16: the model is compiled"),
    ],
)
def test_what_is_left_in_fp16_is_told(share, why, told):
    lines = island_sentences(with_plan(replace(PLAN, half_share=share, half_share_reason=why)))
    assert told in [line.replace("\u202f", " ") for line in lines]


def test_a_set_that_leaves_nothing_is_told_as_no_plan_with_what_its_modules_are():
    none = replace(PLAN, enough=False, minimal=False, reason=NOTHING_LEFT, half_share=0.0)
    (line,) = island_sentences(with_plan(none, "bf16"))
    assert line == (
        'no plan: with "0" (Linear 24->64), "2" (Linear 64->64) in FP32 nothing would be left in FP16 (tried on the '
        "first batch: 3 FP16 iterations, emulated, 0.1 s)"
    )
    long = replace(none, keep_fp32=tuple(f"block.{i}" for i in range(9)), modules=("Block",) * 9)
    assert "with block.0, block.1, block.2, block.3 and 5 more in FP32" in island_sentences(with_plan(long, "bf16"))[0]


def scale_box(plan: IslandPlan, train_with: str = "fp16-plan") -> str:
    box = boxes(with_plan(plan, train_with))[0]
    return " | ".join(str(each) for each in (box.title, box.value, *box.lines))


def test_the_box_has_the_plans_scale_where_the_plan_is_what_to_train_with():
    told = scale_box(PLAN)
    assert told.startswith("Recommended loss scale | 2<sup>5</sup> | with the plan’s modules in FP32 | dynamic scaling")
    assert told.endswith("without them: 2<sup>14</sup>")


@pytest.mark.parametrize(("log2_scale", "mode"), [(0, "none"), (None, "none")])
def test_the_box_asks_for_no_scale_where_the_plan_needs_none(log2_scale, mode):
    plan = replace(PLAN, log2_scale=log2_scale, mode=mode)
    assert "Recommended loss scale | not needed | with the plan" in scale_box(plan)


def test_where_bf16_is_what_to_train_in_the_box_is_plain_fp16s():
    assert "the plan" not in scale_box(PLAN, "bf16")


def test_the_line_on_the_plans_scale_says_where_none_is_needed():
    advice = with_plan(replace(PLAN, log2_scale=0, mode="none")).advice
    assert plan_scale_lines(advice) == [("islands", "with them in FP32 no loss scale is needed")]
