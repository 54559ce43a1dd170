"""MP6xx: what the runs of the verification say. Both sides of every threshold, and healthy runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

import report_samples as samples
from capture_samples import HEALTHY, capture
from mpdiag.accuracy import ControlOutcome
from mpdiag.advice import advise, advise_on_trials, before_runs, with_findings
from mpdiag.advice.checks import BY_CODE, TRIAL_CHECKS
from mpdiag.diagnosis import Advice, Finding, Trial, Verification
from mpdiag.foretold import TensorForecast, summarized
from mpdiag.plan import IslandPlan

ADVICE = advise(capture(*HEALTHY))


def trial(arm: str = "fp16", scales: tuple[float, ...] | None = None, **more: Any) -> Trial:
    fields: dict[str, Any] = {"losses": (1.0, 0.5), "steps": 100, "seed": 0, "emulated": True, "precision": arm} | more
    return Trial(arm=arm, loss_scales_log2=scales, final_log2_scale=scales[-1] if scales else None, **fields)


def verification(*trials: Trial, **more: Any) -> Verification:
    return Verification((trial("fp32"), *trials), (), "go", "r", **more)


def found(code: str, *trials: Trial, advice: Advice = ADVICE, **more: Any) -> list[Finding]:
    return list(BY_CODE[code].find(verification(*trials, **more), advice))


def severities(findings: list[Finding]) -> list[str]:
    return [finding.severity for finding in findings]


def said(code: str) -> Advice:
    return replace(ADVICE, findings=(Finding(code, "n", "error", "s", "m", {}, "r"),))


def skipping(steps: int, skips: int, growths: int = 0) -> tuple[float, ...]:
    """A scale after each step: 20 of warm-up, then the growths, the skips, and nothing."""
    scales = [30.0] * 21
    for change in [1.0] * growths + [-1.0] * skips + [0.0] * (steps - skips - growths):
        scales.append(scales[-1] + change)
    return tuple(scales)


@pytest.mark.parametrize("check", TRIAL_CHECKS, ids=lambda c: c.code)
def test_healthy_runs_have_no_finding(check):
    steady = trial(scales=(16.0,) * 100)
    controls = (ControlOutcome("fp16-unscaled", True, "loss +1"),)
    assert found(check.code, steady, trial("bf16"), controls=controls) == []
    assert found(check.code) == []


# MP601 skip-rate


@pytest.mark.parametrize(
    ("skips", "severity"), [(2, []), (3, ["warning"]), (10, ["warning"]), (11, ["error"]), (30, ["error"])]
)
def test_mp601_skips_of_a_hundred_steps(skips, severity):
    assert severities(found("MP601", trial(scales=skipping(100, skips)))) == severity


def test_mp601_one_in_a_hundred_is_left_alone():
    assert found("MP601", trial(scales=skipping(300, 3))) == []
    assert severities(found("MP601", trial(scales=skipping(299, 3)))) == ["warning"]


def test_mp601_skips_that_follow_a_growth_are_healthy():
    assert found("MP601", trial(scales=skipping(100, 5, growths=3))) == []
    assert severities(found("MP601", trial(scales=skipping(100, 6, growths=3)))) == ["warning"]


def test_mp601_a_scale_that_comes_down_at_the_start_is_healthy():
    coming_down = tuple(float(max(24 - step, 10)) for step in range(100))
    assert found("MP601", trial(scales=coming_down)) == []


def test_mp601_counts_over_all_seeds():
    (f,) = found("MP601", *(trial(scales=skipping(50, 1), seed=seed) for seed in range(3)))
    assert f.message == "3 of 150 steps after the first 20 of each seed were skipped, and the scale grew 0 times"
    assert f.evidence["share"] == 0.02


def test_mp601_of_plain_fp16_is_a_warning_where_the_verdict_is_about_the_plan():
    plain, planned = trial(scales=skipping(100, 50)), trial("fp16-plan", skipping(100, 0))
    assert severities(found("MP601", plain, planned)) == ["error"]
    assert severities(found("MP601", plain, planned, train_with="fp16-plan")) == ["warning"]


# MP602 scale-collapse


@pytest.mark.parametrize(
    ("final", "severity"), [(1.0, []), (0.0, []), (-1.0, ["warning"]), (-9.0, ["warning"]), (-10.0, ["error"])]
)
def test_mp602_where_the_scale_ends(final, severity):
    assert severities(found("MP602", trial(scales=(5.0, *[final] * 30)))) == severity


def test_mp602_ten_halvings_in_a_row_are_an_error_but_not_at_the_start():
    falling = tuple(float(40 - step) for step in range(11))
    assert found("MP602", trial(scales=(*falling, *[30.0] * 30))) == []
    assert severities(found("MP602", trial(scales=(*[40.0] * 30, *falling)))) == ["error"]
    nine = (*[40.0] * 30, *falling[:10])
    assert found("MP602", trial(scales=nine)) == []


@pytest.mark.parametrize(
    ("final", "severity"), [(-80.0, []), (-87.0, []), (-88.0, ["warning"]), (-96.0, ["warning"]), (-97.0, ["error"])]
)
def test_mp602_a_scale_that_starts_below_1_is_measured_from_its_start(final, severity):
    findings = found("MP602", trial(scales=(-87.0, *[final] * 30)))
    assert severities(findings) == severity
    for f in findings:
        assert f.evidence["limit"] == -87
        assert "scaler.get_scale() < 2.0**-87:" in (f.snippet or "")


def test_mp602_a_scale_that_falls_in_the_warm_up_of_a_start_below_1_still_counts():
    assert severities(found("MP602", trial(scales=tuple(-20.0 - step for step in range(15))))) == ["error"]


# MP603 scale-sawtooth


@pytest.mark.parametrize(("growths", "skips", "says"), [(2, 2, True), (3, 2, True), (1, 1, False), (2, 3, False)])
def test_mp603_a_sawtooth_is_information(growths, skips, says):
    assert severities(found("MP603", trial(scales=skipping(100, skips, growths)))) == ["info"] * says


# MP604 dead-layer-gradient

SCALE = ADVICE.loss_scale.log2_scale or 0


def forecast(observed: float, name: str = "fc.weight", **more: Any) -> TensorForecast:
    fields: dict[str, Any] = {"kind": "weight_gradient", "log2_scale": SCALE, "predicted": 0.01, "overflow": 0.0} | more
    return TensorForecast(
        name, fields["kind"], 20, fields["log2_scale"], 100, fields["predicted"], None, observed, 0.0,
        fields["overflow"], more.get("noise", False), more.get("energy_lost"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("energy_lost", "foretold", "says"), [(1e-24, 0.97, False), (1e-3, 0.97, True), (1e-24, 0.01, True)]
)
def test_mp604_small_elements_that_carry_nothing_are_no_dead_gradient(energy_lost, foretold, says):
    # the third: nearly all is zero though the counts foretold a hundredth, so something upstream was lost
    assert bool(dead(forecast(0.97, predicted=foretold, energy_lost=energy_lost))) is says


def dead(*tensors: TensorForecast) -> list[Finding]:
    return found("MP604", prediction=summarized(tensors, True))


@pytest.mark.parametrize(
    ("observed", "severity"), [(0.5, []), (0.51, ["warning"]), (0.999, ["warning"]), (1.0, ["error"])]
)
def test_mp604_what_is_zero_in_fp16_and_not_in_fp32(observed, severity):
    assert severities(dead(forecast(observed))) == severity


def test_mp604_names_the_worst_and_counts_the_others():
    (f,) = dead(forecast(0.6, "a"), forecast(1.0, "b"), forecast(0.7, "c", kind="activation_gradient"))
    assert (f.subject, f.evidence["observed"], f.evidence["predicted"]) == ("b", 1.0, 0.01)
    assert f.message.endswith("after 20 steps (1 % foretold); so is that of 2 more")


@pytest.mark.parametrize(
    "exempt", [{"kind": "activation"}, {"noise": True}, {"log2_scale": SCALE + 1}, {"overflow": 0.1}]
)
def test_mp604_what_is_no_gradient_at_the_recommended_scale_is_no_matter(exempt):
    assert dead(forecast(1.0, **exempt)) == []


# MP605 prediction-missed


def test_mp605_an_overflow_that_was_not_foretold():
    seen = summarized([forecast(0.0, "head", kind="activation", overflow=0.5)], True)
    (f,) = found("MP605", prediction=seen)
    assert (f.severity, f.subject) == ("warning", "head")
    assert f.message == "head's activation overflowed in FP16, which FP32's counts did not foretell"
    assert found("MP605", prediction=seen, advice=said("MP102")) == []  # which says so already


@pytest.mark.parametrize(("observed", "says"), [(0.06, False), (0.0601, True)])
def test_mp605_a_forecast_that_is_five_points_off_is_information(observed, says):
    findings = found("MP605", prediction=summarized([forecast(observed, predicted=0.01)], True))
    assert severities(findings) == ["info"] * says


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


def test_mp604_is_about_the_scale_that_the_runs_start_at_where_none_is_advised():
    scale = replace(ADVICE.loss_scale, log2_scale=None, upper_log2=12)
    advice = replace(ADVICE, loss_scale=scale)
    lost = [forecast(1.0, log2_scale=k) for k in (0, 12)]
    (f,) = found("MP604", advice=advice, prediction=summarized(lost, True))
    assert "at a loss scale of 2^12" in f.message
    assert found("MP604", advice=advice, prediction=summarized(lost[:1], True)) == []


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
