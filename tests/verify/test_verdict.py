"""One answer from all comparisons, and whether the controls failed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from arm_samples import SCALE, judged, trial
from mpdiag.accuracy import ControlOutcome, PairedTest
from mpdiag.diagnosis import Advice, Comparison, Finding, Trial
from mpdiag.verify.controls import control_outcomes
from mpdiag.verify.verdict import decide, train_with

FINDING = Finding("MP101", "activation-overflow", "error", "head", "too large", {}, "keep it in FP32")
SEEDS = (0, 1, 2)
RUNS = tuple(replace(trial(arm, s, [1.0] * 100), emulated=False) for s in SEEDS for arm in ("fp32", "fp16", "bf16"))


def decided(
    *comparisons: Comparison, findings: tuple[Finding, ...] = (), trials: Sequence[Trial] = RUNS
) -> tuple[str, str]:
    return decide(Advice("FP16", SCALE, findings), trials, comparisons)


def test_fp16_equal_to_fp32_is_a_go():
    verdict, reason = decided(judged("fp16", "equivalent"))
    assert (verdict, reason) == (
        "go",
        "FP16 with the recommended loss scale equals FP32 over 100 steps and 3 seeds"
        " (preliminary: five seeds make it firm)",
    )


@pytest.mark.parametrize(("distinct", "preliminary"), [(5, False), (4, True), (2, True)])
def test_a_go_by_fewer_than_five_distinct_seeds_is_preliminary(distinct, preliminary):
    runs = tuple(replace(trial(arm, s, [1.0] * 100), emulated=False) for s in range(5) for arm in ("fp32", "fp16"))
    verdict, reason = decided(replace(judged("fp16", "equivalent"), seeds=distinct), trials=runs)
    assert (verdict, "over 100 steps and 5 seeds" in reason, "preliminary" in reason) == ("go", True, preliminary)


def test_what_is_undecided_or_worse_is_not_called_preliminary():
    assert "preliminary" not in decided(judged("fp16", "inconclusive"))[1]
    assert "preliminary" not in decided(judged("fp16", "worse"), judged("bf16", "worse"))[1]


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ({"log2_scale": 0, "mode": "none"}, "FP16 without a loss scale equals"),
        ({"log2_scale": None, "mode": "none", "upper_log2": None}, "FP16 without a loss scale equals"),
        (
            {"log2_scale": None, "mode": "none"},
            "FP16 with a loss scale that starts at 2^14, for none serves all, equals",
        ),
    ],
)
def test_a_go_without_a_recommended_scale_names_none(scale, words):
    found = decide(Advice("FP16", replace(SCALE, **scale), ()), RUNS, [judged("fp16", "equivalent")])
    assert found[1].startswith(words)


NO_HALF = replace(SCALE, log2_scale=None, mode="none", lower_log2=None, upper_log2=None)


def test_a_go_where_nothing_is_fp16_says_that_autocast_changes_nothing():
    found = decide(Advice("FP16", NO_HALF, ()), RUNS, [judged("fp16", "equivalent")])
    assert found == (
        "go",
        "autocast changes nothing here: no gradient is FP16 under it, and every loss of the FP16 runs is "
        "bit-identical to FP32's over 100 steps and 3 seeds (preliminary: five seeds make it firm)",
    )


@pytest.mark.parametrize("losses", [(1.0,) * 99 + (1.0 + 2**-52,), (1.0,) * 99])
def test_a_go_whose_losses_differ_by_one_bit_does_not_say_so(losses):
    runs = tuple(replace(t, losses=losses) if (t.arm, t.seed) == ("fp16", 1) else t for t in RUNS)
    _, reason = decide(Advice("FP16", NO_HALF, ()), runs, [judged("fp16", "equivalent")])
    assert reason.startswith("FP16 without a loss scale equals FP32")


def test_identical_losses_with_fp16_gradients_do_not_say_that_autocast_changes_nothing():
    assert decided(judged("fp16", "equivalent"))[1].startswith("FP16 with the recommended loss scale equals")


def test_a_better_metric_beside_an_equal_loss_is_a_go():
    assert decided(judged("fp16", "equivalent"), judged("fp16", "better", "accuracy"))[0] == "go"


def test_one_worse_quantity_outweighs_the_equal_ones():
    metric_lost = (judged("fp16", "equivalent"), judged("fp16", "worse", "accuracy"))
    assert decided(*metric_lost, judged("bf16", "worse"))[0] == "no-go"


def test_an_error_makes_a_go_a_go_with_changes_and_is_named():
    verdict, reason = decided(judged("fp16", "equivalent"), findings=(FINDING,))
    assert verdict == "go-with-changes"
    assert "MP101 has to be mended first" in reason


@pytest.mark.parametrize("severity", ["warning", "info"])
def test_a_finding_that_is_no_error_leaves_a_go_a_go(severity):
    assert decided(judged("fp16", "equivalent"), findings=(replace(FINDING, severity=severity),))[0] == "go"


STILL = replace(FINDING, code="MP518", severity="warning", message="no weight changed in 20 FP32 steps")


@pytest.mark.parametrize("fp16", [judged("fp16", each) for each in ("equivalent", "worse", "inconclusive")])
def test_a_job_that_does_not_train_gets_no_go_and_is_told_why_first(fp16):
    found = decided(fp16, judged("bf16", "equivalent"), findings=(STILL,))
    assert found == ("inconclusive", "no weight changed in 20 FP32 steps (MP518)")
    assert train_with([fp16, judged("bf16", "equivalent")], Advice("FP16", SCALE, (STILL,))) is None


def test_a_job_that_does_not_train_and_fails_in_both_precisions_stays_a_no_go():
    assert decided(judged("fp16", "worse"), judged("bf16", "worse"), findings=(STILL,))[0] == "no-go"


def test_bf16_is_the_way_out_where_fp16_is_worse():
    verdict, reason = decided(judged("fp16", "worse"), judged("bf16", "equivalent"))
    assert verdict == "go-with-changes"
    assert reason.startswith("train in BF16, which equals FP32 over 100 steps and 3 seeds (preliminary")
    assert "; FP16 is worse (" in reason
    assert reason.endswith("(loss differs by +0.25, margin 0.05)")


def test_fp16_and_bf16_both_worse_is_a_no_go():
    verdict, reason = decided(judged("fp16", "worse"), judged("bf16", "worse"))
    assert verdict == "no-go"
    assert reason.startswith("neither FP16 nor BF16 keeps up with FP32")


@pytest.mark.parametrize("others", [(), (judged("bf16", "inconclusive"),)])
def test_fp16_worse_and_bf16_undecided_is_inconclusive(others):
    verdict, reason = decided(judged("fp16", "worse"), *others)
    assert verdict == "inconclusive"
    assert reason.endswith("BF16 is undecided")


def test_an_undecided_fp16_is_inconclusive_and_says_why():
    verdict, reason = decided(judged("fp16", "inconclusive", reason="needs about 9 seeds"))
    assert verdict == "inconclusive"
    assert reason == (
        "FP16 against FP32 over 100 steps and 3 seeds is undecided: "
        "loss differs by +0.25, margin 0.05, needs about 9 seeds"
    )


def test_an_undecided_fp16_beside_an_equal_bf16_says_so():
    reason = decided(judged("fp16", "inconclusive"), judged("bf16", "equivalent"))[1]
    assert reason.endswith("margin 0.05. BF16 equals FP32")


def test_a_failed_run_gives_its_reason():
    failed = judged("fp16", "worse", reason="the run failed: boom", difference=None, interval=None)
    assert decided(failed, judged("bf16", "worse"))[1].endswith(
        "over 100 steps and 3 seeds (loss: the run failed: boom)"
    )
    assert "(loss: the run failed: boom)" in decided(failed)[1]


def test_an_undecided_quantity_without_a_difference_gives_its_reason():
    none = judged("fp16", "inconclusive", reason="the FP32 baseline is not finite", difference=None, interval=None)
    assert decided(none)[1].endswith(" is undecided: loss: the FP32 baseline is not finite")


def test_without_a_comparison_of_fp16_nothing_is_decided():
    verdict, reason = decided(trials=())
    assert verdict == "inconclusive"
    assert "it was not run" in reason


def test_a_cost_never_decides_the_verdict():
    assert decided(judged("fp16", "equivalent"), judged("fp16", "worse", "step_time_ms", difference=2.0))[0] == "go"
    assert decided(judged("fp16", "better", "step_time_ms", difference=0.5))[0] == "inconclusive"


@pytest.mark.parametrize(
    ("verdict", "ratio", "interval", "words"),
    [
        ("better", 0.5, (0.4, 0.625), "; 2.00x as fast (1.60 to 2.50)"),
        ("better", 0.5, None, "; 2.00x as fast"),
        ("worse", 1.25, (1.25, 2.0), "; slower, 0.80x the speed (0.50 to 0.80)"),
        ("equivalent", 1.01, (0.99, 1.02), "; no faster and no slower"),
        ("inconclusive", 1.28, (0.9, 1.8), "; step time x1.28, undecided"),
    ],
)
def test_a_go_says_what_it_gains(verdict, ratio, interval, words):
    cost = judged("fp16", verdict, "step_time_ms", difference=ratio, interval=interval)
    assert decided(judged("fp16", "equivalent"), cost)[1].endswith(words)


def test_a_gain_over_other_settings_than_the_baselines_is_not_the_verdicts():
    over_tf32 = replace(judged("fp16", "better", "step_time_ms", difference=0.7), baseline="tf32")
    assert "as fast" not in decided(judged("fp16", "equivalent"), over_tf32)[1]


@pytest.mark.parametrize(
    ("verdict", "ratio", "words"),
    [
        ("better", 0.8, "1.25x as fast as your present settings (1.11 to 1.43)"),
        ("worse", 1.25, "slower than your present settings, 0.80x the speed (1.11 to 1.43)"),
        ("equivalent", 1.01, "no faster and no slower than your present settings"),
        ("inconclusive", 1.1, "step time x1.10 that of your present settings, undecided"),
    ],
)
def test_a_go_says_what_it_gains_over_what_the_user_has_already(verdict, ratio, words):
    over_ieee = judged("fp16", "better", "step_time_ms", difference=0.4, interval=None)
    now = judged("fp16", verdict, "step_time_ms", difference=ratio, interval=(0.7, 0.9))
    now, over_tf32 = replace(now, baseline="fp32-configured"), replace(over_ieee, baseline="tf32")
    told = decided(judged("fp16", "equivalent"), over_ieee, over_tf32, now)[1]
    assert told.endswith(f"; 2.50x as fast as IEEE FP32, {words}")


def test_where_the_users_fp32_is_ieee_the_other_baseline_is_tf32():
    over_ieee = judged("fp16", "better", "step_time_ms", difference=0.4, interval=None)
    told = decided(judged("fp16", "equivalent"), over_ieee, replace(over_ieee, baseline="tf32", difference=0.8))[1]
    assert told.endswith("; 2.50x as fast as IEEE FP32, 1.25x as fast as TF32")


def test_a_go_says_what_memory_it_takes():
    cost = judged("fp16", "better", "peak_memory_bytes", difference=0.642)
    assert decided(judged("fp16", "equivalent"), cost)[1].endswith("; 0.64x the memory")


def test_an_emulated_run_says_so():
    runs = [replace(t, emulated=True) for t in RUNS]
    reason = decided(judged("fp16", "equivalent"), trials=runs)[1]
    assert reason.startswith("FP16 (emulated CUDA policy) with the recommended")


def test_one_step_is_written_without_an_s():
    runs = [replace(t, steps=1, losses=(1.0,)) for t in RUNS]
    assert " over 1 step and 3 seeds is undecided" in decided(judged("fp16", "inconclusive"), trials=runs)[1]


def test_one_seed_is_written_without_an_s():
    reason = decided(judged("fp16", "equivalent"), trials=RUNS[:3])[1]
    assert reason.endswith("over 100 steps and 1 seed (preliminary: five seeds make it firm)")


def test_the_steps_that_bf16_equals_fp32_over_are_bf16s_own():
    runs = [replace(t, steps=2, losses=t.losses[:2], error="boom") if t.arm == "fp16" else t for t in RUNS]
    failed = judged("fp16", "worse", reason="the run failed: boom", difference=None, interval=None)
    reason = decided(failed, judged("bf16", "equivalent"), trials=runs)[1]
    assert reason.startswith("train in BF16, which equals FP32 over 100 steps and 3 seeds")
    assert reason.endswith("FP16 raises at step 3: boom")


# what raises


FAILED = judged("fp16", "worse", reason="the run failed: boom", difference=None, interval=None)
ENDED = tuple(replace(t, steps=0, losses=(), error=None if t.arm == "fp32" else "boom") for t in RUNS)


def raising(*others: Comparison, code: str, severity: str = "error") -> tuple[str, str]:
    return decided(FAILED, *others, findings=(replace(FINDING, code=code, severity=severity),), trials=ENDED)


@pytest.mark.parametrize("bf16", [(), (judged("bf16", "worse"),)])
@pytest.mark.parametrize("code", ["MP303", "MP305", "MP502"])
def test_what_raises_and_can_be_mended_is_a_go_with_changes(bf16, code):
    assert raising(*bf16, code=code) == (
        "go-with-changes",
        f"FP16 raises: mend {code}, then scan again (at step 1: boom)",
    )


def test_what_raises_and_no_finding_mends_gives_its_error_and_no_word_on_steps_and_seeds():
    assert raising(judged("bf16", "worse"), code="MP304") == (
        "no-go",
        "FP16 raises at step 1: boom; BF16 raises too",
    )
    assert raising(code="MP304") == ("inconclusive", "FP16 raises at step 1: boom; BF16 is undecided")


def test_the_finding_that_has_the_line_of_what_raises_is_enough_to_mend_it():
    line = replace(FINDING, code="MP304", source="model.py:8")
    found = decided(FAILED, findings=(line,), trials=ENDED)
    assert found == ("go-with-changes", "FP16 raises: mend MP304, then scan again (at step 1: boom)")
    constant = replace(FINDING, code="MP305")
    assert "mend MP305, then" in decided(FAILED, findings=(line, constant), trials=ENDED)[1]


def test_what_this_cpu_cannot_emulate_is_undecided_whatever_bf16_does():
    verdict, reason = raising(judged("bf16", "worse"), code="MP304", severity="info")
    assert verdict == "inconclusive"
    assert "a CUDA GPU may well run it" in reason


def test_a_bf16_that_keeps_up_stays_the_way_out_and_the_mending_of_fp16_is_named():
    verdict, reason = raising(judged("bf16", "equivalent"), code="MP305")
    assert (verdict, reason.startswith("train in BF16")) == ("go-with-changes", True)
    assert reason.endswith("FP16 raises at step 1: boom: mend MP305 for it")


# a metric that evaluate() does not give


def open_metric(arm: str, quantity: str = "top_1") -> Comparison:
    reason = "evaluate() gives no value here: boom"
    return judged(arm, "not-measured", quantity, reason, difference=None, interval=None)


def test_where_evaluate_alone_fails_the_loss_decides_and_it_is_no_plain_go():
    about = [judged("fp16", "equivalent"), open_metric("fp16"), judged("bf16", "worse")]
    assert decided(*about) == (
        "go-with-changes",
        "FP16 equals FP32 in its loss over 100 steps and 3 seeds (preliminary: five seeds make it firm), but its "
        "evaluate() gave no top 1 to judge: mend MP609, then verify again",
    )
    assert train_with(about) == "fp16"


def test_where_evaluate_fails_an_error_is_mended_first_and_a_bf16_that_passes_is_named():
    about = [judged("fp16", "equivalent"), open_metric("fp16"), judged("bf16", "equivalent")]
    verdict, reason = decided(*about, findings=(FINDING,))
    assert (verdict, train_with(about)) == ("go-with-changes", "fp16")
    assert reason.endswith("mend MP101, MP609, then verify again. BF16 equals FP32")


@pytest.mark.parametrize(("loss", "verdict"), [("inconclusive", "inconclusive"), ("worse", "no-go")])
def test_where_evaluate_fails_a_loss_that_is_worse_or_undecided_stays_so(loss, verdict):
    about = [judged("fp16", loss), open_metric("fp16"), judged("bf16", "worse")]
    assert (decided(*about)[0], train_with(about)) == (verdict, None)


def test_where_evaluate_fails_another_metric_that_is_worse_decides():
    about = [judged("fp16", "equivalent"), open_metric("fp16"), judged("fp16", "worse", "f1"), judged("bf16", "worse")]
    assert (decided(*about)[0], train_with(about)) == ("no-go", None)


def test_a_bf16_whose_metric_alone_fails_does_not_fall_behind():
    about = [judged("fp16", "worse"), judged("bf16", "equivalent"), open_metric("bf16")]
    verdict, reason = decided(*about)
    assert (verdict, train_with(about)) == ("go-with-changes", "bf16")
    assert reason.startswith("BF16 equals FP32 in its loss over 100 steps")
    assert reason.endswith("mend MP609, then verify again; FP16 as it is is worse (loss differs by +0.25, margin 0.05)")


def test_a_plan_that_passes_in_all_goes_before_a_loss_alone():
    about = [judged("fp16", "equivalent"), open_metric("fp16"), judged("fp16-plan", "equivalent")]
    assert train_with(about) == "fp16-plan"


def test_a_control_without_its_metric_has_not_shown_to_be_equal():
    (found,) = control_outcomes([judged("fp16-pure", "equivalent"), open_metric("fp16-pure")])
    assert (found.failed, found.why) == (None, "top 1: evaluate() gives no value here: boom")


# not worse is enough


def not_worse(arm: str, quantity: str = "loss") -> Comparison:
    """Undecided between equal and better."""
    return judged(arm, "inconclusive", quantity, difference=-0.25, test=PairedTest("a rule", noninferior=True))


def test_an_fp16_that_is_not_worse_by_the_margin_is_a_go_and_says_no_more_than_that():
    verdict, reason = decided(not_worse("fp16"))
    assert verdict == "go"
    assert reason.startswith("FP16 with the recommended loss scale is not worse than FP32 over 100 steps and 3 seeds (")
    assert train_with([not_worse("fp16")]) == "fp16"


def test_equal_in_one_quantity_and_not_worse_in_another_is_not_worse():
    assert "is not worse than FP32" in decided(judged("fp16", "equivalent"), not_worse("fp16", "accuracy"))[1]


def test_an_undecided_quantity_beside_one_that_is_not_worse_is_undecided_and_the_one_named():
    undecided = judged("fp16", "inconclusive", "accuracy", "needs about 9 seeds", test=PairedTest("r", False))
    verdict, reason = decided(not_worse("fp16"), undecided)
    assert (verdict, train_with([not_worse("fp16"), undecided])) == ("inconclusive", None)
    assert "undecided: accuracy differs by" in reason


def test_bf16_that_is_not_worse_is_the_way_out_too():
    verdict, reason = decided(judged("fp16", "worse"), not_worse("bf16"))
    assert verdict == "go-with-changes"
    assert reason.startswith("train in BF16, which is not worse than FP32 over 100 steps and 3 seeds (preliminary")


def test_a_loss_that_is_not_finite_is_said_so():
    broken = judged("fp16", "worse", reason="not finite at step 3 of seed 0, while FP32 is", difference=None)
    assert "(loss not finite at step 3 of seed 0, while FP32 is)" in decided(broken)[1]


def test_ratios_of_any_name_decide_nothing():
    other = judged("fp16", "worse", "samples_per_second", difference=0.5, is_ratio=True)
    assert decided(judged("fp16", "equivalent"), other)[0] == "go"


# the controls


def test_a_control_that_is_worse_has_failed_and_says_by_how_much():
    found = control_outcomes([judged("fp16-pure", "worse"), judged("fp16", "worse")])
    assert found == (ControlOutcome("fp16-pure", True, "loss +0.25, margin 0.05"),)


def test_a_control_that_is_worse_in_its_metric_alone_has_failed():
    about = [judged("fp16-pure", "equivalent"), judged("fp16-pure", "worse", "top_1", difference=-0.1)]
    assert control_outcomes(about) == (ControlOutcome("fp16-pure", True, "top 1 -0.1, margin 0.05"),)


def test_a_control_whose_loss_is_not_finite_shows_only_that_breakage_is_noticed():
    reason = "not finite at step 3 of seed 0, while FP32 is"
    (found,) = control_outcomes([judged("fp16-pure", "worse", reason=reason, difference=None)])
    assert (found.failed, found.broke, found.why) == (None, True, f"loss: {reason}")


def test_a_control_that_crashed_says_nothing_about_the_test():
    crashed = judged("fp16-pure", "worse", reason="the run failed: no kernel for Half", difference=None)
    (found,) = control_outcomes([crashed])
    assert (found.failed, found.why) == (None, "the run failed: no kernel for Half")


def test_a_control_that_is_equivalent_has_not_failed():
    about = [judged("fp16-unscaled", "equivalent"), judged("fp16-unscaled", "better", "accuracy")]
    assert control_outcomes(about) == (ControlOutcome("fp16-unscaled", False, "loss equivalent, accuracy better"),)


def test_a_control_that_is_not_worse_by_the_margin_has_not_failed():
    (found,) = control_outcomes([not_worse("fp16-unscaled")])
    assert (found.failed, found.why) == (False, "loss not worse")


def test_an_undecided_control_has_not_shown_anything():
    (found,) = control_outcomes([judged("fp16-unscaled", "inconclusive", reason="needs about 9 seeds")])
    assert (found.failed, found.why) == (None, "loss +0.25, margin 0.05, needs about 9 seeds")


def test_only_controls_that_were_run_have_an_outcome_and_costs_say_nothing_about_them():
    cost = judged("fp16-pure", "worse", "step_time_ms", difference=2.0, is_ratio=True)
    assert control_outcomes([judged("fp16", "worse"), cost]) == ()
    assert [c.arm for c in control_outcomes([judged("fp16-pure", "worse"), judged("fp16-unscaled", "worse")])] == [
        "fp16-unscaled",
        "fp16-pure",
    ]


STATES = {
    "equivalent": lambda arm: (judged(arm, "equivalent"),),
    "worse": lambda arm: (judged(arm, "worse"),),
    "inconclusive": lambda arm: (judged(arm, "inconclusive"),),
    "by the loss alone": lambda arm: (judged(arm, "equivalent"), open_metric(arm)),
}


@pytest.mark.parametrize(("half", "brain"), list(itertools.product(STATES, STATES)))
def test_what_to_train_with_is_in_the_sentence_of_the_verdict(half, brain):
    found = (*STATES[half]("fp16"), *STATES[brain]("bf16"))
    verdict, reason = decided(*found)
    arm = train_with(found)
    if arm is None:
        assert verdict in ("no-go", "inconclusive")
    else:
        assert verdict != "no-go"
        assert arm.upper() in reason
