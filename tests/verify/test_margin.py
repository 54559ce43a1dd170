"""The user's own margin, from the target file to the comparison; and the rule's, of a metric near zero."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from scipy import stats

from arm_samples import SCALE, metrics, one
from mpdiag.diagnosis import Advice, Comparison
from mpdiag.errors import UsageError
from mpdiag.report.accuracy_words import standing, verdict_in_words
from mpdiag.target.load import load_job
from mpdiag.target.metrics import margins_of
from mpdiag.verify.compare import compare_arms
from mpdiag.verify.controls import control_outcomes
from mpdiag.verify.paired_test import METRIC_POINT
from mpdiag.verify.verdict import decide, train_with

TARGET = """
import torch
def build_model(): return torch.nn.Linear(1, 1)
def train_batches(): return [torch.ones(1, 1)]
def compute_loss(model, batch): return model(batch).mean()
"""


def test_a_number_is_for_the_metric():
    assert margins_of({"MARGIN": 0.5, "evaluate": lambda model: 1.0}, "model.py") == {"metric": 0.5}


def test_without_a_metric_a_number_is_for_the_loss():
    assert margins_of({"MARGIN": 1}, "model.py") == {"loss": 1.0}


def test_several_are_by_quantity():
    assert margins_of({"MARGIN": {"loss": 0.1, "f1": 2}}, "model.py") == {"loss": 0.1, "f1": 2.0}


def test_without_one_the_rule_holds():
    assert margins_of({}, "model.py") == {}


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "0.5", True, {"loss": 0}, {"loss": None}])
def test_what_is_no_number_above_zero_is_refused(value):
    with pytest.raises(UsageError, match="MARGIN") as refused:
        margins_of({"MARGIN": value}, "model.py")
    assert refused.value.slug == "target-margin"


def test_it_is_read_from_the_target_file(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(TARGET + "MARGIN = 0.25\n")
    assert load_job(str(path)).margins == {"loss": 0.25}


# a metric near zero

DETECTOR = [2.3e-4, 1.9e-6, 1.1e-4]
"""mAP of an object detector's FP32 runs, a few steps from initialisation."""


def near_zero(base: list[float], other: list[float], higher: bool = True) -> Comparison:
    return one(metrics(base, other), "accuracy", higher=higher)


def test_seeds_that_scatter_as_widely_as_a_metric_is_large_give_a_margin_of_their_spread():
    c = near_zero(DETECTOR, [1e-4, 1e-4, 2e-6])
    assert c.margin == pytest.approx(0.5 * statistics.stdev(DETECTOR) * math.sqrt(2 / stats.chi2.ppf(0.95, 2)))
    assert c.margin == pytest.approx(3.3e-5, rel=0.01)  # 2 % of the value would be 2.3e-6
    assert c.test.worse_beyond == pytest.approx(statistics.stdev(DETECTOR) / 2)


def test_an_undecided_metric_about_zero_decides_nothing_and_says_so():
    c = near_zero(DETECTOR, [1e-4, 1e-4, 2e-6])
    assert (c.verdict, c.decides, c.test.about_zero, c.test.seeds_needed) == ("inconclusive", False, True, None)
    assert c.reason == "FP32's own runs are about zero in it: a longer run, or one from a trained state, would tell"
    assert (verdict_in_words(c), standing(c)) == ("decides nothing yet", 3)


def test_the_loss_decides_beside_it_and_the_verdict_names_it():
    trials = metrics(DETECTOR, [1e-4, 1e-4, 2e-6])
    found = compare_arms(trials, True)
    assert train_with(found) == "fp16"
    verdict, reason = decide(Advice("FP16", SCALE, ()), trials, found)
    assert verdict == "go"
    assert reason.startswith("FP16 (emulated CUDA policy) with the recommended loss scale equals FP32 over 4 steps")
    assert reason.endswith("(preliminary: five seeds make it firm), but for accuracy, about zero in FP32 too")


def test_a_metric_about_zero_passes_no_arm_but_one_that_equals_fp32_to_the_bit():
    assert near_zero(DETECTOR, [b + 1e-9 for b in DETECTOR]).decides is False
    assert near_zero(DETECTOR, [b + 1e-9 for b in DETECTOR]).test.noninferior is None
    assert near_zero(DETECTOR, DETECTOR).verdict == "equivalent"
    assert near_zero([0.0, 0.0, 0.0], [0.0, 1e-3, 0.0]).decides is False


def test_an_arm_that_is_worse_about_zero_is_worse():
    c = near_zero([1e-3, 3e-3, 2e-3], [0.0, 1.8e-3, 1e-3])
    assert (c.verdict, c.decides, c.test.about_zero) == ("worse", True, True)


@pytest.mark.parametrize("arm", [math.nan, math.inf])
def test_an_arm_that_breaks_about_zero_is_worse(arm):
    assert near_zero(DETECTOR, [1e-4, arm, 2e-6]).verdict == "worse"


@pytest.mark.parametrize(
    ("base", "higher"),
    [
        ([0.9, 0.43, 0.0074], True),  # the detector's shape, and everything to lose
        ([2 * METRIC_POINT, 0.0, 0.004], True),
        ([0.004, 0.0041, 0.0039], True),  # small in its own unit, and known well
        (DETECTOR, False),  # an error near zero has everything to lose
    ],
)
def test_a_metric_with_something_to_lose_goes_on_deciding(base, higher):
    c = near_zero(base, [base[0] * 1.5, base[1], base[2] / 2], higher)
    assert (c.verdict, c.decides, c.test.about_zero) == ("inconclusive", True, False)


def test_the_margin_near_zero_is_half_a_point_at_most():
    c = near_zero([0.02, 0.08, 0.04], [0.02, 0.08, 0.04])
    assert c.margin == METRIC_POINT
    assert c.test.margin_from == "0.005, the most there is"


def test_far_apart_seeds_of_a_metric_that_is_learnt_keep_two_percent():
    c = near_zero([0.9, 0.43, 0.0074], [0.9, 0.43, 0.0074])
    assert c.margin == pytest.approx(0.02 * statistics.fmean([0.9, 0.43, 0.0074]))
    assert c.test.margin_from == "2 % of FP32's value, the most there is"


def test_the_margin_near_zero_comes_from_fp32_alone():
    assert near_zero(DETECTOR, [0.5, 0.5, 0.5]).margin == near_zero(DETECTOR, [0.0, 0.0, 0.0]).margin


def test_the_users_own_margin_decides_about_zero_too():
    trials = metrics(DETECTOR, [1e-4, 1e-4, 2e-6])
    found = {c.quantity: c for c in compare_arms(trials, True, {"accuracy": 0.001})}
    assert (found["accuracy"].verdict, found["accuracy"].margin) == ("equivalent", 0.001)


def test_a_control_is_not_undecided_by_a_metric_about_zero():
    made = metrics(DETECTOR, [1e-4, 1e-4, 2e-6])
    trials = [replace(t, arm="fp16-unscaled") if t.arm == "fp16" else t for t in made]
    (outcome,) = control_outcomes(compare_arms(trials, True))
    assert (outcome.failed, outcome.why) == (False, "loss equivalent")
