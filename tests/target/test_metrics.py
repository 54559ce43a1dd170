"""The user's metric: its names, which way is better, and what the target says of metrics that it does not give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from arm_samples import trial
from mpdiag.api import scan
from mpdiag.diagnosis import Comparison, Trial
from mpdiag.errors import UsageError
from mpdiag.report.html_verification import figure
from mpdiag.target import load_job
from mpdiag.target.metrics import (
    directions_of,
    higher_is_better,
    margins_of,
    metric_notes,
    metric_of,
)
from mpdiag.training.precision import FP32_IEEE
from mpdiag.verify.arms import Arm
from mpdiag.verify.compare import compare_arms
from mpdiag.verify.trials import train_arm

MODEL = torch.nn.Linear(1, 1)
CPU = torch.device("cpu")
TARGET = """
import torch
def build_model(): return torch.nn.Linear(1, 1)
def train_batches(): return [torch.ones(1, 1) * i for i in (1, 2, 3)]
def compute_loss(model, batch): return model(batch).pow(2).mean()
def build_optimizer(model): return torch.optim.SGD(model.parameters(), lr=0.01)
"""


def given(value: Any) -> dict[str, float]:
    metric = metric_of({"evaluate": lambda model: value}, "model.py")
    assert metric is not None
    return metric(MODEL)


@pytest.fixture
def target(tmp_path: Path) -> Any:
    def writing(text: str) -> str:
        path = tmp_path / "job.py"
        path.write_text(TARGET + text)
        return str(path)

    return writing


# which way is better


@pytest.mark.parametrize("value", [True, False])
def test_one_bool_is_for_every_metric(value):
    assert directions_of({"HIGHER_IS_BETTER": value}, "model.py") is value
    assert higher_is_better("loss", value) is higher_is_better("accuracy", value) is value


def test_a_dict_has_a_bool_for_each_metric():
    told = directions_of({"HIGHER_IS_BETTER": {"acc": False, "ppl": True, "loss": False}}, "model.py")
    assert told == {"acc": False, "ppl": True, "metric loss": False}
    assert [higher_is_better(name, told) for name in ("acc", "ppl", "metric loss")] == [False, True, False]


@pytest.mark.parametrize(
    "value", ["lower", 0, 1.0, ["ppl"], {"ppl": "lower"}, {"ppl": 0}, {"ppl": None}, torch.ones(2)],
    ids=["text", "number", "float", "list", "text by name", "number by name", "none by name", "tensor"],
)  # fmt: skip
def test_what_is_no_bool_is_refused(value):
    with pytest.raises(UsageError, match="HIGHER_IS_BETTER") as refused:
        directions_of({"HIGHER_IS_BETTER": value}, "model.py")
    assert refused.value.slug == "target-metric"


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        ("loss", False), ("metric loss", False), ("eval_loss", False), ("valLoss", False), ("perplexity", False),
        ("ppl", False), ("test-error", False), ("ErrRate", False), ("MSE", False), ("rmse2", False), ("MAE", False),
        ("WERScore", False), ("cer", False), ("FID50k", False), ("edit distance", False),
        ("nll", False), ("val/bpc", False), ("bits_per_byte", False), ("CE", False), ("cross_entropy", False),
        ("LogLoss", False), ("kl_div", False), ("sMAPE", False), ("msle", False), ("fpr95", False), ("FNR", False),
        ("miss-rate", False), ("brier score", False), ("ECE", False), ("lpips", False), ("eer", False), ("TER", False),
        ("epe", False), ("regret", False), ("residual", False), ("false_negative_rate", False), ("dice_loss", False),
        ("top1_error", False), ("negative_log_likelihood", False),
        ("accuracy", True), ("f1", True), ("mAP50", True), ("R2", True), ("bleu", True), ("score", True),
        ("true negative rate", True), ("error_free", True), ("loss reduction", True), ("neg_mean_squared_error", True),
        ("metric", None), ("glossary", None), ("power", None), ("merrily", None), ("terror", None),
        ("confidence", None), ("effective_rank", None), ("", None), ("42", None), ("negative", None),
    ],
)  # fmt: skip
def test_without_a_setting_the_words_in_a_name_decide(name, higher):
    assert higher_is_better(name, {}) is higher
    assert [higher_is_better(name, {name: told}) for told in (True, False)] == [True, False]


def moved(name: str, by: float) -> Comparison:
    trials = [trial("fp32", seed, 1 + seed / 10, {name: 5.0 + seed / 100}) for seed in range(3)]
    trials += [trial("fp16", seed, 1 + seed / 10, {name: 5.0 + by + seed / 100}) for seed in range(3)]
    (found,) = [c for c in compare_arms(trials, {}) if c.quantity == name]
    return found


@pytest.mark.parametrize("by", [4.0, -4.0])
def test_a_metric_whose_name_says_nothing_is_neither_better_nor_worse_whichever_way_it_moves(by):
    c = moved("effective_rank", by)
    assert (c.verdict, c.reason) == (
        "inconclusive",
        "its name does not say which way is better: set HIGHER_IS_BETTER",
    )
    assert (c.test.noninferior, c.test.seeds_needed) == (False, None)
    assert c.test.upper_bound > 3.9  # the harm may be on either side


def test_what_moves_a_little_past_zero_in_an_unknown_direction_is_not_shown_to_be_no_worse():
    trials = [trial("fp32", seed, 1 + seed / 10, {"rank": 5.0 + seed / 100}) for seed in range(3)]
    trials += [trial("fp16", s, 1 + s / 10, {"rank": 5.0 + s / 100 + d}) for s, d in enumerate((0.0, 0.3, 0.2))]
    c = next(c for c in compare_arms(trials, {}) if c.quantity == "rank")
    told = next(c for c in compare_arms(trials, {"rank": True}) if c.quantity == "rank")
    assert (c.verdict, c.test.noninferior, told.verdict) == ("inconclusive", False, "inconclusive")
    assert "HIGHER_IS_BETTER" not in c.reason


def test_a_metric_whose_name_says_nothing_may_be_equal():
    assert moved("effective_rank", 0.0).verdict == "equivalent"
    assert moved("effective_rank", 0.001).verdict == "equivalent"


def test_a_guess_makes_no_go_of_a_worse_metric(target):
    """Bits a character, which a file does not call better when lower, go up by half under FP16."""
    text = (
        "def evaluate(model):\n"
        "    half = model(torch.ones(1, 1)).dtype == torch.float16\n"
        "    return {'nll': 1.5 if half else 1.1, 'odd': 1.5 if half else 1.1}\n"
    )
    seen = scan(target(text), device="cpu", steps=2, verify_steps=10, seeds=2)
    fp16 = {c.quantity: c.verdict for c in seen.verification.comparisons if c.candidate == "fp16"}
    assert (fp16["nll"], fp16["odd"]) == ("worse", "inconclusive")
    assert seen.verification.verdict not in ("go", None)
    assert seen.verification.train_with != "fp16"
    assert seen.verification.cut[-1] == (
        "HIGHER_IS_BETTER is not set, so names say which way: lower is taken as better for nll; no direction is known "
        "for odd, where a difference decides nothing"
    )


def test_each_metric_is_compared_in_its_own_direction():
    trials = [trial("fp32", seed, 1 + seed / 10, {"acc": 0.5 + seed / 100, "ppl": 8.0 + seed}) for seed in range(3)]
    trials += [trial("fp16", seed, 1 + seed / 10, {"acc": 0.9 + seed / 100, "ppl": 80.0 + seed}) for seed in range(3)]

    def verdicts(told: Any) -> dict[str, str]:
        return {c.quantity: c.verdict for c in compare_arms(trials, told) if c.quantity != "loss"}

    assert verdicts({"acc": True, "ppl": False}) == verdicts({}) == {"acc": "better", "ppl": "worse"}
    assert verdicts({"acc": False, "ppl": True}) == {"acc": "worse", "ppl": "better"}
    assert verdicts(True) == {"acc": "better", "ppl": "better"}


EVALUATE = "def evaluate(model): return {'acc': 0.5, 'ppl': 9.0}\n"


def test_a_file_gives_its_directions_to_the_job(target):
    job = load_job(target(EVALUATE + "HIGHER_IS_BETTER = {'acc': True, 'ppl': False}\n"))
    assert (job.better, job.higher_is_better, job.lower_is_better) == ({"acc": True, "ppl": False}, True, ("ppl",))


def test_a_file_in_which_all_are_better_when_lower_says_so(target):
    assert load_job(target(EVALUATE + "HIGHER_IS_BETTER = {'acc': False, 'ppl': False}\n")).higher_is_better is False
    job = load_job(target(EVALUATE + "HIGHER_IS_BETTER = False\n"))
    assert (job.better, job.lower_is_better) == (False, ())


def test_a_file_that_says_nothing_leaves_each_metric_to_its_name(target):
    job = load_job(target(EVALUATE))
    assert (job.better, job.higher_is_better) == ({}, True)


def test_each_direction_that_a_name_gives_is_told():
    said = "HIGHER_IS_BETTER is not set, so names say which way: "
    assert metric_notes(["acc", "ppl", "f1", "rank"], {}, {}) == (
        f"{said}lower is taken as better for ppl; higher is taken as better for acc, f1; no direction is known for "
        "rank, where a difference decides nothing",
    )
    assert metric_notes(["acc", "ppl"], {}, {"acc": True}) == (f"{said}lower is taken as better for ppl",)
    assert metric_notes(["acc", "ppl"], {}, True) == metric_notes(["acc"], {}, {"acc": True}) == ()


# names that are taken


def test_a_metric_named_loss_is_not_the_training_loss():
    assert given({"loss": 2.0, "acc": 1.0}) == {"metric loss": 2.0, "acc": 1.0}


def test_a_scan_keeps_the_metric_named_loss_apart(target):
    seen = scan(
        target("def evaluate(model): return {'loss': 100.0}\nMARGIN = {'loss': 0.5, 'metric loss': 7.0}\n"),
        device="cpu", steps=2, verify_steps=10, seeds=2,
    )  # fmt: skip
    fp16 = {c.quantity: c for c in seen.verification.comparisons if c.candidate == "fp16" and not c.is_ratio}
    named = {"loss", "metric loss"}
    assert named <= fp16.keys()
    assert (fp16["metric loss"].baseline_value, fp16["metric loss"].margin) == (100.0, 7.0)
    assert fp16["loss"].baseline_value < 100.0
    assert fp16["loss"].margin == 0.5


@pytest.mark.parametrize(
    "value",
    [{"step_time_ms": 1.0}, {"peak_memory_bytes": 1}, {"energy_joules_per_sample": 1.0}, {"loss": 1, "metric loss": 2}],
)
def test_a_name_that_is_taken_is_refused(value):
    with pytest.raises(UsageError, match="the name of something else here") as refused:
        given(value)
    assert refused.value.slug == "target-metric"


@pytest.mark.parametrize("value", [{"acc": None}, {"acc": "0.5"}, {"acc": True}])
def test_an_entry_that_is_no_number_is_refused(value):
    with pytest.raises(UsageError) as refused:
        given(value)
    assert refused.value.slug == "metric-not-a-number"


# no metric


def test_an_evaluate_without_an_entry_measures_nothing(target):
    job = load_job(target("def evaluate(model): return {}\n"))
    found = train_arm(job, Arm("fp32", FP32_IEEE), job.start(0, 2), 2, CPU)
    assert (found.metric, found.error, found.not_measured["metric"]) == (None, None, "evaluate gave no metric")


def test_a_page_of_runs_without_a_metric_is_drawn(target):
    from mpdiag.report.html import render

    seen = scan(target("def evaluate(model): return {}\n"), device="cpu", steps=2, verify_steps=10, seeds=2)
    assert "evaluate gave no metric" in render(seen)


def test_an_empty_metric_of_an_older_file_is_drawn_as_nothing():
    empty: Trial = trial("fp32", 0, metric={})
    assert figure(empty, "metric") is None
    assert "0.5" in str(figure(trial("fp32", 0, metric={"acc": 0.5}), "metric"))


# what is said of metrics that are not there


def test_a_margin_for_an_unknown_metric_is_told():
    assert metric_notes(["accuracy"], {"acuracy": 0.1, "loss": 1.0, "metric": 2.0}, True) == (
        "MARGIN names acuracy, which evaluate does not give: it gives accuracy",
    )


def test_a_direction_for_an_unknown_metric_is_told_under_the_name_that_was_written():
    assert metric_notes(["f1", "bleu"], {"f1": 0.5}, {"metric loss": False, "f1": True})[:1] == (
        "HIGHER_IS_BETTER names loss, which evaluate does not give: it gives f1, bleu",
    )


def test_nothing_is_told_before_a_metric_was_measured():
    assert metric_notes([], {"acuracy": 0.1}, {"ppl": False}) == ()


@pytest.mark.parametrize("value", [10**400, 10**5000, -(10**400), {"loss": 10**400}], ids=lambda value: "")
def test_a_margin_beyond_every_float_is_refused(value):
    with pytest.raises(UsageError, match="not a finite number above zero") as refused:
        margins_of({"MARGIN": value}, "model.py")
    assert refused.value.slug == "target-margin"
    assert len(refused.value.message) < 200
