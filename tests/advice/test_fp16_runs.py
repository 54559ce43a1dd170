"""Plain FP16's runs are told beside the plan's that mend them, with what overflowed in them where that is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from capture_samples import HEALTHY, capture
from mpdiag.advice import advise, advise_on_trials, with_findings
from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.checks.fp16_runs import MENDED, said
from mpdiag.advice.checks.gradients import CURED
from mpdiag.diagnosis import Finding, Trial, Verification
from mpdiag.foretold import FirstOverflow

ADVICE = advise(capture(*HEALTHY))
FALLING = (*[-21.0] * 30, *(-21.0 - step for step in range(30)))
HOT = FirstOverflow(2, "4", 76784.0, None)
MENDS = "; with the plan's modules in FP32 it does not happen"


def trial(arm: str, **more: Any) -> Trial:
    fields: dict[str, Any] = {"losses": (1.0, 0.5, 0.25), "steps": 3, "seed": 0, "emulated": True, "precision": arm}
    return Trial(arm=arm, **(fields | more))


BROKEN = trial("fp16", losses=(1.0, math.inf, math.inf), loss_scales_log2=FALLING, overflow=HOT)
PLANNED = trial("fp16-plan", loss_scales_log2=(-21.0,) * 60)


def found(code: str, *trials: Trial, train_with: str | None = "fp16-plan") -> list[Finding]:
    runs = Verification((trial("fp32"), *trials), (), "go", "r", train_with=train_with)
    return list(BY_CODE[code].find(runs, ADVICE))


@pytest.mark.parametrize("code", ["MP601", "MP602", "MP606"])
def test_plain_fp16_that_breaks_is_told_where_the_plan_is_what_to_train_with(code):
    (f,) = found(code, BROKEN, PLANNED)
    assert f.severity == "warning"
    assert f.message.startswith("without the plan's FP32 modules, ")
    assert f.message.endswith(MENDS)
    assert f.subject.endswith(" without the plan")
    assert f.evidence[MENDED] is True


@pytest.mark.parametrize("code", ["MP601", "MP602", "MP606"])
def test_without_a_plan_it_is_an_error_that_promises_nothing(code):
    for train_with in ("bf16", None):
        (f,) = found(code, BROKEN, train_with=train_with)
        assert f.severity == "error"
        assert "plan" not in f.message
        assert MENDED not in f.evidence


def test_where_bf16_goes_before_a_sound_plan_the_error_stays_and_the_plan_is_named():
    (f,) = found("MP606", BROKEN, PLANNED, train_with="bf16")
    assert (f.severity, f.subject) == ("error", "the loss")
    assert f.message.endswith(MENDS)


def test_a_plan_that_breaks_as_well_mends_nothing():
    both = found("MP606", BROKEN, replace(BROKEN, arm="fp16-plan"))
    assert [(f.severity, f.subject) for f in both] == [("error", "the loss"), ("error", "the loss without the plan")]
    assert not any(MENDS in f.message for f in both)


def test_a_plan_that_broke_in_another_way_is_not_sound():
    raised = replace(PLANNED, error="boom")
    (f,) = found("MP602", BROKEN, raised, train_with="bf16")
    assert MENDS not in f.message


def test_plain_fp16_that_raises_where_the_plan_does_not_is_told_too():
    (f,) = found("MP607", trial("fp16", error="boom", steps=2), PLANNED)
    assert f.message == f"without the plan's FP32 modules, FP16 training fails after 2 steps: boom{MENDS}"


def test_healthy_runs_of_both_say_nothing():
    steady = trial("fp16", loss_scales_log2=(-21.0,) * 60)
    assert [found(code, steady, PLANNED) for code in ("MP601", "MP602", "MP606", "MP607")] == [[]] * 4


# the cause


def test_the_module_that_overflowed_first_is_the_cause_and_what_to_keep():
    (f,) = found("MP606", BROKEN, train_with=None)
    assert f.message == (
        "the loss is not finite from step 2 on in FP16, while FP32 is (seed 0); the first output that is not finite is "
        'that of module "4", which reaches 76,784 in FP32'
    )
    assert f.remedy == 'keep module "4" in FP32, or train in BF16'
    assert "self[4](x.float())" in (f.snippet or "")
    assert f.evidence["module"] == "4"
    (scale,) = found("MP602", BROKEN, train_with=None)
    assert 'that of module "4"' in scale.message
    assert scale.remedy == 'keep module "4" in FP32, or train in BF16'


def test_what_could_not_be_told_says_why_and_how_to_find_out():
    unknown = replace(BROKEN, overflow=FirstOverflow(2, None, None, "the same batch was finite"))
    (f,) = found("MP606", unknown, train_with=None)
    assert f.message.endswith("; what overflows is not known: the same batch was finite")
    assert "--start-from" in f.remedy
    assert "set_detect_anomaly" in (f.snippet or "")
    (old,) = found("MP606", replace(BROKEN, overflow=None), train_with=None)
    assert old.message.endswith("while FP32 is (seed 0)"), "a file of before says nothing of it"


def test_another_seeds_cause_will_do():
    unknown = replace(BROKEN, overflow=FirstOverflow(2, None, None, "unlucky"))
    (f,) = found("MP606", unknown, replace(BROKEN, seed=1), trial("fp32", seed=1), train_with=None)
    assert 'module "4"' in f.message


def test_a_loss_that_comes_back_is_not_said_to_be_gone_from_there_on():
    back = replace(BROKEN, losses=(1.0, math.inf, math.nan, 0.5, 0.5), overflow=None)
    (f,) = found("MP606", back, train_with=None)
    assert (f.severity, f.evidence["step"]) == ("warning", 2)
    assert f.message.startswith("the loss is not finite at step 2 and 1 of 3 later in FP16")


def test_one_finite_loss_at_the_end_is_no_recovery():
    (f,) = found("MP606", replace(BROKEN, losses=(1.0, math.inf, 0.5, math.nan, 0.5)), train_with=None)
    assert f.severity == "error"


def test_no_start_of_the_scale_is_advised_while_the_loss_itself_is_infinite():
    (f,) = found("MP601", BROKEN, train_with=None)
    assert f.remedy == "no start of the scale helps while the loss itself is not finite: see MP606"
    (only_skips,) = found("MP601", replace(BROKEN, losses=(1.0, 0.5)), train_with=None)
    assert only_skips.remedy.startswith("start lower (2^")


@pytest.mark.parametrize(("name", "words"), [("4", 'module "4"'), ("0.1", 'module "0.1"'), ("fc.4", "fc.4")])
def test_an_index_is_no_number_in_a_sentence(name, words):
    assert said(name) == words


# with the advice


def test_a_scale_that_collapses_only_without_the_plan_does_not_contradict_it():
    lost = Finding("MP201", "gradient-underflow", "info", "fc", "m", {CURED: True}, "r")
    advice = replace(ADVICE, findings=(lost,))

    def severity(train_with: str | None) -> str:
        runs = Verification((trial("fp32"), BROKEN, PLANNED), (), "go", "r", train_with=train_with)
        return next(f.severity for f in with_findings(advice, advise_on_trials(runs, advice)).findings if f is not None
                    and f.code == "MP201")  # fmt: skip

    assert severity("fp16-plan") == "info"
    runs = Verification((trial("fp32"), BROKEN), (), "go", "r", train_with=None)
    judged = with_findings(advice, advise_on_trials(runs, advice)).findings
    assert next(f.severity for f in judged if f.code == "MP201") == "warning"
