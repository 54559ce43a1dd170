"""Which format for this job on this GPU: what was trained here comes before what is foretold."""

import pytest

import report_samples as samples
from format_choice_samples import MP101, advice, chosen, forecast, machine, verified, why
from mpdiag.accuracy import PairedTest
from mpdiag.advice.format_choice import choose_format
from mpdiag.diagnosis import Verification

# trained


@pytest.mark.parametrize(
    ("train_with", "found"), [("fp16", "FP16"), ("fp16-plan", "FP16 with FP32 islands"), ("bf16", "BF16")]
)
def test_what_was_trained_comes_before_what_is_foretold(train_with, found):
    run = verified(train_with, **{train_with.replace("-", "_"): "equivalent"})
    # the forecasts say otherwise, and do not count
    choice = choose_format(machine("A100"), advice(forecasts=(forecast("BF16", losing=9),)), run)
    assert (choice.chosen, choice.verified) == (found, True)
    assert choice.reason == "trained here and keeps up with FP32"


def test_emulated_training_says_so():
    run = verified("fp16", emulated=True, fp16="equivalent")
    assert chosen(None, run=run).reason == "trained here, emulated, and keeps up with FP32"


def test_fp16_that_trains_but_has_an_error_says_what_to_mend():
    run = verified("fp16", fp16="equivalent")
    choice = choose_format(machine("A100"), advice(MP101), run)
    assert choice.reason == "trained here and keeps up with FP32; MP101 to be mended first"


def test_bf16_without_tensor_cores_saves_memory_alone():
    run = verified("bf16", bf16="equivalent", fp16="worse")
    reason = chosen("V100", run=run).reason
    assert "Tesla V100-SXM2-16GB has no tensor cores for it, so it saves memory, not time" in reason


def test_what_fell_behind_is_not_chosen_though_foretold_to_fit():
    run = verified(None, fp16="worse", bf16="inconclusive")
    choice = chosen("A100", run=run)
    assert (choice.chosen, choice.verified) == ("BF16", False)
    assert choice.reason.startswith("FP16 falls behind FP32 here; BF16")
    assert choice.reason.endswith(", here undecided")
    assert why(choice, "FP16") == "trained here, falls behind FP32"
    assert why(choice, "BF16") == "trained here, undecided"


def test_where_everything_fell_behind_tf32_is_left():
    assert chosen("A100", run=verified(None, fp16="worse", bf16="worse")).chosen == "TF32"
    assert chosen("V100", run=verified(None, fp16="worse", bf16="worse")).chosen == "FP32"


def test_an_undecided_run_leaves_the_forecast():
    choice = chosen("A100", run=verified(None, fp16="inconclusive"))
    assert (choice.chosen, choice.verified) == ("FP16", False)
    assert choice.reason.endswith("loss scale 2^14, here undecided")


def test_an_undecided_bf16_says_nothing_of_an_fp16_that_was_not_trained():
    assert chosen("A100", run=verified(None, bf16="inconclusive")).reason.endswith("loss scale 2^14, not trained here")


def test_fp16_that_keeps_up_where_nothing_trains_was_trained_here():
    assert chosen("A100", run=verified(None, fp16="equivalent")).reason.endswith("2^14, keeps up with FP32 here")


def test_shown_not_to_be_worse_is_enough():
    inconclusive = samples.comparison("fp16", verdict="inconclusive", test=PairedTest("m", noninferior=True))
    run = Verification((), (inconclusive,), None, "", train_with="fp16")
    assert why(chosen("A100", run=run), "FP16") == "trained here, keeps up with FP32"


def test_what_was_not_measured_was_not_trained():
    run = verified(None, bf16="not-measured")
    assert why(chosen("A100", run=run), "BF16") == "its range is foretold to fit, not trained here"
