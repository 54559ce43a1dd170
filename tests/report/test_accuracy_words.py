"""Accuracy in words and in the band's picture: what the controls showed, where an arm is told apart from FP32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import report_samples as samples
from mpdiag.accuracy import ControlOutcome, CurveBand, PairedTest
from mpdiag.diagnosis import Comparison, Diagnosis, SelfTest
from mpdiag.report.accuracy_words import (
    band_sentences,
    control_sentences,
    repeat_sentence,
    standing,
    verdict_in_words,
)
from mpdiag.report.curve_bands import band_curves
from mpdiag.report.digest import comparison_line, digest_of
from mpdiag.report.html import render
from mpdiag.report.html_numbers import prose
from mpdiag.report.html_summary import boxes
from report_samples import comparison

FAILED = ControlOutcome("fp16-pure", True, "loss +0.3, margin 0.1")
EQUAL = ControlOutcome("fp16-unscaled", False, "loss equivalent")
BROKEN = ControlOutcome("fp16-pure", None, "loss: not finite", broke=True)
UNDECIDED = ControlOutcome("fp16-unscaled", None, "loss +0.1, margin 0.2, needs about 9 seeds")
ORDER = {"fp32": 0, "fp16": 1, "fp16-pure": 2}


def verified(*controls: ControlOutcome, start_from: str | None = None, **more: Any) -> Diagnosis:
    full = samples.full()
    assert full.verification is not None
    assert full.target is not None
    run = replace(full.verification, controls=controls, **more)
    return replace(full, verification=run, target=replace(full.target, start_from=start_from))


def text(*controls: ControlOutcome, **more: Any) -> str:
    return "; ".join(control_sentences(verified(*controls, **more)))


# the controls


def test_a_control_that_failed_shows_that_the_test_can():
    assert text(FAILED) == (
        "fp16-pure is worse, as it should be (loss +0.3, margin 0.1): the test can fail on this job"
    )


def test_one_control_that_failed_is_enough():
    assert text(EQUAL, FAILED).startswith("fp16-unscaled is not worse (loss equivalent); fp16-pure is worse")
    assert "nothing has shown" not in text(EQUAL, FAILED)


@pytest.mark.parametrize("control", [EQUAL, UNDECIDED])
def test_where_no_control_failed_it_is_said_plainly_and_where_one_would(control):
    assert "no control failed: nothing has shown that this test can fail on this job within 100 steps" in text(control)
    assert text(control).endswith("--start-from CHECKPOINT")


def test_a_control_that_broke_shows_only_that_breakage_is_noticed():
    said = text(BROKEN, EQUAL)
    eps = "because Adam's eps of 1e-8 is 0 in FP16"
    assert f"fp16-pure broke (loss: not finite), {eps}, which shows that breakage is noticed and no more" in said
    assert "no control failed" not in said
    assert "no control was worse in a finite loss: nothing has shown that this test can tell a small harm" in said


def test_a_control_that_raised_is_said_to_have_and_is_not_called_undecided():
    said = text(
        replace(UNDECIDED, why="the run failed: boom"), replace(UNDECIDED, arm="fp16-pure", why="the run failed: boom")
    )
    assert said.startswith(
        "fp16-unscaled and fp16-pure raised, which says nothing about accuracy (boom); no control ran"
    )
    assert said.endswith("no control ran to its end, so nothing has shown that this test can fail on this job")
    assert "undecided" not in said


def test_an_error_that_fp16_has_too_is_not_told_again_of_every_control():
    run = samples.full().verification
    assert run is not None
    trials = tuple(replace(t, error="boom") if t.arm == "fp16" else t for t in run.trials)
    said = text(replace(UNDECIDED, why="the run failed: boom"), EQUAL, trials=trials)
    assert "fp16-unscaled raised as fp16 did, which says nothing about accuracy; no control failed" in said
    assert "boom" not in said


def test_a_scan_that_began_late_in_training_is_not_sent_there_again():
    said = text(EQUAL, start_from="late.pt")
    assert said.endswith("nothing has shown that this test can fail on this job within 100 steps from this checkpoint")


def test_where_no_control_was_run_nothing_was_shown_either():
    full = samples.full().verification
    assert full is not None
    trained = tuple(t for t in full.trials if t.arm in ("fp32", "fp16"))
    assert text(trials=trained).startswith("no control was run: nothing has shown")


def test_a_scan_saved_before_outcomes_were_says_nothing_about_them():
    assert text() == ""


def test_without_a_verification_there_is_nothing_to_say():
    assert control_sentences(samples.minimal()) == []


def test_terminal_and_page_say_the_same_about_the_controls():
    diagnosis = verified(EQUAL)
    said = control_sentences(diagnosis)
    assert dict(digest_of(diagnosis).why)["controls"] == "; ".join(said)
    page = render(diagnosis, plotly="none")
    assert "Can this test fail?" in page
    assert prose(said[0]) in page
    assert prose(said[1][1:]) in page


# a comparison


def test_undecided_between_equal_and_better_is_said_to_be_not_worse():
    shown = comparison("fp16", verdict="inconclusive", test=PairedTest("r", True))
    assert verdict_in_words(shown) == "not worse, perhaps better"
    assert verdict_in_words(comparison("fp16", verdict="inconclusive", test=PairedTest("r", False))) == "inconclusive"
    assert verdict_in_words(comparison("fp16", verdict="not-measured")) == "not measured"
    assert verdict_in_words(comparison("fp16", test=PairedTest("r", True))) == "equivalent"


def test_an_undecided_comparison_says_how_much_the_pairs_scatter():
    test = PairedTest("r", False, 0.75, 2.8, 2.0, 17, 1.0)
    line = comparison_line(comparison("fp16", verdict="inconclusive", reason="needs about 70 seeds", test=test))[1]
    assert line.endswith(": inconclusive, needs about 70 seeds; the differences of the pairs scatter by 2.8 margins")


def test_what_to_do_next_takes_the_seeds_from_the_test_not_from_its_words():
    test = PairedTest("r", False, 0.75, 2.8, 2.0, 17, 1.0)
    undecided = comparison("fp16", verdict="inconclusive", reason="in other words", test=test)
    diagnosis = verified(FAILED, verdict="inconclusive", comparisons=(undecided,))
    assert any(step.startswith("scan again with --seeds 17 ") for step in digest_of(diagnosis).next_steps)


def test_the_page_lists_the_tests_with_their_margins_rule():
    page = render(samples.full(), plotly="none")
    assert "The paired tests (4)" in page
    assert "half the spread between 3 FP32 seeds, the lower 95 % bound of it" in page


# the band


def band(arm: str = "fp16", at: int | None = None, scale: float = 1.0, **more: Any) -> CurveBand:
    low, mean, high = ((-scale,) * 3, (0.0, 0.0, 0.5 * scale), (scale,) * 3)
    return replace(CurveBand(arm, 5, (1, 2, 3), mean, low, high, 0.9375, 1, at), **more)


def test_a_band_says_where_an_arm_is_told_apart_and_how_sure_that_is():
    assert band_sentences((band(), band("bf16", at=40))) == [
        "fp16: no difference from FP32 shown at any step (93.8 % confidence for the whole curve, 5 seeds).",
        "bf16: differs from FP32, first at step 40 (93.8 % confidence for the whole curve, 5 seeds).",
    ]


def test_arms_of_which_the_same_holds_share_a_sentence():
    missing = [CurveBand(arm, 1, reason="it takes 3 distinct seeds") for arm in ("fp16", "bf16")]
    assert band_sentences(tuple(missing)) == ["fp16, bf16: no band, because it takes 3 distinct seeds."]


def test_a_band_that_ends_early_says_so():
    said = band_sentences((band(reason="ends after step 3"),))[0]
    assert said.startswith("fp16: ends after step 3; until then no difference from FP32 shown at any step (93.8 %")


def test_every_arm_with_a_band_is_drawn_and_a_control_without_its_area():
    drawn = band_curves((band(), band("fp16-pure", scale=9.0)), ORDER, ("fp16-pure",), 0.5)
    assert drawn is not None
    assert drawn.count('class="band band-1"') == 1
    assert 'class="band band-2"' not in drawn
    assert 'class="line arm-2"' in drawn
    assert drawn.count('class="margin"') == 2


def test_a_control_far_away_does_not_squash_the_others():
    alone = band_curves((band(),), ORDER, ("fp16-pure",), None)
    beside = band_curves((band(), band("fp16-pure", scale=1e6)), ORDER, ("fp16-pure",), None)
    assert alone is not None
    assert beside is not None
    assert alone.split("<path ")[0] == beside.split("<path ")[0]  # the axes


@pytest.mark.parametrize(
    "bands",
    [(), (CurveBand("fp16", 1, reason="r"),), (band(scale=0.0),)],
    ids=["none", "an arm without", "bit-identical"],
)
def test_nothing_to_draw_is_no_picture(bands):
    assert band_curves(bands, ORDER, (), 0.5) is None


def weighed(standing_of: str, shown: bool | None = None) -> Comparison:
    return comparison("fp16", verdict=standing_of, test=PairedTest("r", shown))


def test_an_arm_stands_as_its_weakest_quantity():
    order = [
        weighed("worse"),
        weighed("inconclusive", False),
        weighed("inconclusive", True),
        weighed("equivalent", True),
    ]
    assert [standing(c) for c in order] == [0, 1, 2, 3]
    assert standing(weighed("better")) == 3
    assert standing(comparison("fp16", verdict="not-measured")) == 1


@pytest.mark.parametrize(
    ("test", "told"),
    [
        (SelfTest(True, 5, 0.0, 0.0), "FP32 twice from one seed is equal to the bit after 5 steps (self-test), so a "
         "pair differs by precision"),
        (SelfTest(True, 1, 0.0, 0.25, "under deterministic algorithms"), "FP32 twice from one seed differs by up to "
         "0.25 after 1 step (self-test: in a loss, gradient or weight), so a part of each pair's difference is not the "
         "precision's"),
        (SelfTest(None, 0, reason="not tested"), None),
    ],
)  # fmt: skip
def test_whether_fp32_repeats_itself_is_quoted_from_the_self_test(test, told):
    made = samples.full()
    assert made.capture is not None
    assert repeat_sentence(replace(made, capture=replace(made.capture, selftest=test))) == told
    assert repeat_sentence(replace(made, capture=None)) is None


def summary(*comparisons: Comparison) -> str:
    """The page's box on accuracy, without markup."""
    run = samples.full().verification
    assert run is not None
    made = boxes(replace(samples.full(), verification=replace(run, comparisons=comparisons)))
    (box,) = (box for box in made if "FP16 against FP32" in box.title)
    return " | ".join(str(line) for line in box.lines)


def test_the_pages_headline_says_no_better_than_the_whole_verdict():
    metric = replace(weighed("equivalent", True), quantity="accuracy")
    loss = replace(weighed("inconclusive", True), quantity="loss")
    assert "equivalent, but the loss is not worse, perhaps better; 3 paired seeds" in summary(loss, metric)
    assert "equivalent, but the loss is worse" in summary(replace(loss, verdict="worse"), metric)
    assert "| equivalent; 3 paired seeds" in summary(replace(loss, verdict="equivalent"), metric)


def test_the_terminals_line_on_bf16_says_not_worse_as_the_page_does():
    run = samples.full().verification
    assert run is not None
    shown = replace(weighed("inconclusive", True), candidate="bf16", quantity="loss")
    made = replace(samples.full(), verification=replace(run, comparisons=(*run.comparisons[:1], shown)))
    assert ("bf16", "loss not worse, perhaps better") in digest_of(made).why
