"""MP606 to MP609, what the runs of the verification say of failures, and how all their findings join the advice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import report_samples as samples
from mpdiag.accuracy import ControlOutcome
from mpdiag.advice import advise_on_trials, before_runs, with_findings
from mpdiag.advice.checks import BY_CODE, TRIAL_CHECKS
from mpdiag.diagnosis import Finding, Trial, Verification
from mpdiag.plan import IslandPlan
from trial_check_samples import ADVICE, found, said, severities, skipping, trial, verification


@pytest.mark.parametrize("check", TRIAL_CHECKS, ids=lambda c: c.code)
def test_healthy_runs_have_no_finding(check):
    steady = trial(scales=(16.0,) * 100)
    controls = (ControlOutcome("fp16-unscaled", True, "loss +1"),)
    assert found(check.code, steady, trial("bf16"), controls=controls) == []
    assert found(check.code) == []


# MP606 nonfinite-training


@pytest.mark.parametrize(
    ("losses", "severity", "step"),
    [((1.0, math.nan, math.nan), "error", 2), ((1.0, math.inf, 0.5), "warning", 2), ((math.nan,), "error", 1)],
)
def test_mp606_a_loss_that_is_finite_in_fp32_alone(losses, severity, step):
    (f,) = found("MP606", trial(losses=losses))
    assert (f.severity, f.evidence["step"]) == (severity, step)


def test_mp606_a_job_that_diverges_in_fp32_too_is_not_mixed_precisions_fault():
    broken = {"losses": (1.0, math.nan), "seed": 5}
    assert found("MP606", trial("fp32", **broken), trial(**broken)) == []


def test_mp606_says_where_no_scale_can_help():
    broken = trial(losses=(math.nan,))
    (f,) = found("MP606", broken, replace(broken, arm="fp16-unscaled"))
    assert f.message.endswith("so it is without a loss scale, so no scale helps")
    (f,) = found("MP606", broken, trial("fp16-unscaled"))
    assert "no scale helps" not in f.message


def test_mp606_another_arm_is_no_matter():
    assert found("MP606", trial(), trial("fp16-pure", losses=(math.nan,))) == []


# MP607 training-fails


def test_mp607_a_run_that_raises_after_the_first_iteration():
    failed = trial(error="boom", steps=7)
    (f,) = found("MP607", failed)
    assert (f.severity, f.message) == ("error", "FP16 training fails after 7 steps: boom")
    assert found("MP607", failed, advice=said("MP304")) == []
    assert found("MP607", trial(), trial("fp16-pure", error="boom")) == []


# MP608 controls-did-not-fail


@pytest.mark.parametrize(
    ("failed", "says"),
    [((False, False), True), ((False, None), True), ((True, False), False), ((None, None), False), ((), False)],
)
def test_mp608_is_information_where_no_control_failed(failed, says):
    controls = tuple(ControlOutcome(f"control-{i}", each, "why") for i, each in enumerate(failed))
    assert severities(found("MP608", controls=controls)) == ["info"] * says


# MP609 evaluation-fails


GIVEN = {"acc": 0.5, "f1": 0.25}


def evaluated(*trials: Trial) -> list[Finding]:
    runs = Verification((trial("fp32", metric=GIVEN), *trials), (), "go", "r")
    return list(BY_CODE["MP609"].find(runs, ADVICE))


def unmeasured(arm: str, why: str = "no kernel for Half, at a.py:3") -> Trial:
    return trial(arm, not_measured={"metric": why})


@pytest.mark.parametrize(
    ("trials", "severity", "message"),
    [
        (["fp16"], "warning", "evaluate() gives no acc and f1 under FP16: no kernel for Half, at a.py:3"),
        (["bf16"], "info", "evaluate() gives no acc and f1 under BF16: no kernel for Half, at a.py:3"),
        (["bf16", "fp16"], "warning", "evaluate() gives no acc and f1 under FP16 and BF16: no kernel for Half, at "
         "a.py:3"),
    ],
    ids=["fp16", "bf16", "both"],
)  # fmt: skip
def test_mp609_an_evaluate_that_gives_no_metric_where_the_training_runs(trials, severity, message):
    (f,) = evaluated(*map(unmeasured, trials))
    assert (f.severity, f.message) == (severity, message)
    assert "cast the model's output to FP32 in evaluate()" in f.remedy


def test_mp609_a_name_that_is_left_out_is_named_alone():
    (f,) = evaluated(trial("fp16", metric={"acc": 0.5, "new": 1.0}))
    assert f.message == "evaluate() gives no f1 under FP16: it gives other names"


def test_mp609_a_run_that_failed_a_control_and_a_job_without_a_metric_are_no_matter():
    assert evaluated(trial("fp16", error="boom"), unmeasured("fp16-pure"), trial("bf16", metric=GIVEN)) == []
    assert found("MP609", unmeasured("fp16", "the target defines no evaluate(model)")) == []


def test_mp608_names_only_the_controls_that_kept_up():
    outcomes = (ControlOutcome("fp16-unscaled", False, "loss equivalent"), ControlOutcome("fp16-pure", None, "b", True))
    (f,) = found("MP608", controls=outcomes)
    assert f.message.startswith("fp16-unscaled did not fall behind FP32 in 100 steps")
    assert f.evidence["controls"] == 1


# an earlier verification's


def test_an_earlier_verifications_findings_do_not_judge_the_next_one():
    made = samples.on_gpu()
    stale, lasting = said("MP607").findings, said("MP101").findings
    saved = replace(made, advice=replace(made.advice, findings=(*stale, *lasting)))
    assert [f.code for f in before_runs(saved).advice.findings] == ["MP101"]


def test_a_plan_that_only_an_earlier_verification_made_goes_with_it():
    made = samples.on_gpu()
    plan = IslandPlan(("fc",), True, True, 5, "dynamic", 2000, 3, 1.0, True)
    saved = replace(made, advice=replace(made.advice, plan=plan, keep_fp32=("fc",), findings=said("MP101").findings))
    again = before_runs(replace(saved, elapsed_seconds={"verify": 1.0, "islands again": 2.0}))
    assert (again.advice.plan, again.advice.keep_fp32) == (None, ("s",))
    assert again.elapsed_seconds == {"verify": 1.0}
    begun = before_runs(replace(saved, elapsed_seconds={"islands": 1.0, "islands again": 2.0}))
    assert begun.advice.plan == plan, "what the scan's own search found is the capture's"


def test_what_raised_in_the_capture_and_raises_no_more_is_not_told():
    made = samples.on_gpu()
    raised = Finding("MP304", "n", "error", "s", "m", {"error": "boom"}, "r")
    other = Finding("MP502", "n", "info", "s", "m", {"error": None}, "r")
    saved = replace(
        made, advice=replace(made.advice, findings=(raised, other)), capture=replace(made.capture, amp_error="boom")
    )
    assert before_runs(saved, raises=True).advice.findings == (raised, other)
    assert before_runs(saved, raises=False).advice.findings == (other,)


# all of them


def test_the_findings_of_the_runs_come_worst_first_and_join_the_advice_once():
    runs = verification(trial(scales=skipping(100, 5), losses=(math.nan,)))
    findings = advise_on_trials(runs, ADVICE)
    assert [f.code for f in findings] == ["MP606", "MP601"]
    info = Finding("MP205", "update-stagnation", "info", "fc.weight", "m", {}, "r")
    joined = with_findings(replace(ADVICE, findings=(info,)), findings)
    assert [f.code for f in joined.findings] == ["MP606", "MP601", "MP205"]
    assert with_findings(joined, findings) == joined
    assert with_findings(joined, ()).findings == (info,)
