"""MP5xx: the training loop. That what is FP32 is never told off, MP510 to MP517, and MP518 where nothing trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from capture_samples import WEIGHT_GRADIENT, capture, table
from loop_samples import ADAMW, LINE, event, found, groups, severities
from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.api import scan
from mpdiag.diagnosis import TensorKind
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import Event, Layer, LoopEvent, LoopFacts

CODES = tuple(f"MP5{number:02}" for number in range(1, 21))


# what is silent


@pytest.mark.parametrize("code", CODES)
def test_a_loop_that_was_not_observed_has_no_finding(code):
    assert found(code, None) == []


@pytest.mark.parametrize("code", CODES)
def test_an_fp32_job_has_no_finding(code):
    state = {"exp_avg": "float32", "exp_avg_sq": "float32"}
    facts = LoopFacts(
        {"float32": 100}, (replace(ADAMW, dtype="float32", state=state),), (Layer("fc", "Linear", 8, 8, 8),)
    )
    assert found(code, facts, table("fc.weight", WEIGHT_GRADIENT, {-20: 10})) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_fp32_job_that_opens_its_own_region_has_no_finding(dtype):
    facts = event(LoopEvent.AUTOCAST, "cuda", dtype=str(dtype).removeprefix("torch."))
    assert [f for code in CODES for f in found(code, facts)] == []


# MP510 to MP517


@pytest.mark.parametrize(("error", "severity"), [(None, "info"), ("mat1 and mat2 must have the same dtype", "warning")])
def test_mp510_a_function_is_information_until_fp16_fails(error, severity):
    assert severities(found("MP510", event(LoopEvent.FUNCTION, "Swish"), amp_error=error)) == [severity]


def test_mp510_a_function_called_twice_is_told_once():
    twice = tuple(Event(LoopEvent.FUNCTION, "Swish", f"model.py:{line}") for line in (7, 9))
    assert [f.source for f in found("MP510", LoopFacts({}, events=twice))] == [LINE]


def test_mp511_names_the_operator_and_its_plain_form():
    (f,) = found("MP511", event(LoopEvent.IN_PLACE, "exp_"))
    assert (f.severity, f.message) == ("info", "exp_ in model.py:7 is not cast by autocast, as exp would be")


def test_mp512_and_mp513_a_penalty_in_a_region_is_information_and_a_backward_a_warning():
    penalty = Event(LoopEvent.PENALTY, "torch.autograd.grad", LINE)
    inside = Event(LoopEvent.BACKWARD_INSIDE, "torch.autograd.grad", LINE)
    assert severities(found("MP512", LoopFacts({}, events=(penalty, inside)))) == ["info"]
    assert severities(found("MP513", LoopFacts({}, events=(penalty, inside)))) == ["info"]
    assert severities(found("MP513", LoopFacts({}, events=(inside,)))) == ["warning"]


def test_mp514_a_compiled_model():
    assert severities(found("MP514", event(LoopEvent.COMPILED, "the model"))) == ["info"]


@pytest.mark.parametrize(
    ("dtypes", "says"), [(["bfloat16"], True), (["float16"], False), (["float16", "bfloat16"], False), ([], False)]
)
def test_mp515_a_scaler_is_needless_where_all_regions_are_bfloat16(dtypes, says):
    regions = [Event(LoopEvent.AUTOCAST, "cuda", f"model.py:{i}", dtype) for i, dtype in enumerate(dtypes)]
    facts = LoopFacts({}, events=(Event(LoopEvent.SCALER, "GradScaler", LINE, value=65536.0), *regions))
    assert severities(found("MP515", facts)) == ["info"] * says


def test_mp516_a_loss_that_comes_scaled():
    (f,) = found("MP516", event(LoopEvent.SCALER, "GradScaler", value=65536.0))
    assert (f.severity, f.message) == ("warning", "the loss is scaled by 65,536 at model.py:7, before mpdiag sees it")


@pytest.mark.parametrize(
    ("dtype", "repeats", "says"),
    [("bfloat16", 257.0, True), ("bfloat16", 256.0, False), ("float16", 2049.0, True), ("float16", 2048.0, False)],
)
def test_mp517_a_row_that_is_looked_up_too_often(dtype, repeats, says):
    facts = event(LoopEvent.REPEATS, "rows.weight", dtype=dtype, value=repeats)
    assert severities(found("MP517", facts)) == ["warning"] * says
    seen = replace(capture(), loop=facts, device="cuda")
    assert severities(list(BY_CODE["MP517"].find(seen, recommend(seen)))) == ["info"] * says


def test_mp517_an_embedding_in_bfloat16_really_stalls():
    rows = nn.Embedding(1, 1, dtype=torch.bfloat16)
    rows(torch.zeros(600, dtype=torch.long)).sum().backward()
    assert float(rows.weight.grad) == 256.0


# MP518 nothing-trains


def updates(*bins: dict[int, int]) -> tuple[Any, ...]:
    return tuple(
        replace(table(f"fc{i}.weight", TensorKind.WEIGHT_UPDATE, {0: 4}), histogram=ExponentHistogram.from_bins(b, 4))
        for i, b in enumerate(bins)
    )


def test_mp518_updates_that_are_all_zero():
    (f,) = found("MP518", groups(lr=0.0), *updates({}, {}))
    assert (f.severity, f.subject, f.evidence) == (
        "warning",
        "the optimizer",
        {"steps": 20, "weights": 2, "changed": 0, "limit": 0, "lr": 0.0},
    )
    assert f.message.startswith("no weight changed in 20 FP32 steps, for the learning rate is 0: ")


def test_mp518_another_cause_than_the_learning_rate_is_not_guessed():
    (f,) = found("MP518", groups(lr=0.5), *updates({}))
    assert "learning rate" not in f.message
    assert f.evidence["lr"] is None


def test_mp518_one_weight_that_moves_once_is_enough():
    assert found("MP518", groups(lr=0.0), *updates({}, {-140: 1})) == []


def test_mp518_a_weight_that_becomes_nan_has_changed():
    (nan,) = updates({})
    assert found("MP518", groups(), replace(nan, histogram=ExponentHistogram.from_bins({}, 3, nans=1))) == []


def test_mp518_weights_that_were_not_observed_say_nothing():
    assert found("MP518", groups(lr=0.0)) == []


def test_mp518_a_scan_of_a_job_with_a_learning_rate_of_zero_is_inconclusive(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(
        "import torch\n"
        "def build_model():\n    return torch.nn.Linear(4, 1)\n"
        "def train_batches():\n    return [torch.randn(8, 4) for _ in range(4)]\n"
        "def compute_loss(model, batch):\n    return model(batch).pow(2).mean()\n"
        "def build_optimizer(model):\n    return torch.optim.SGD(model.parameters(), lr=0.0)\n"
    )
    seen = scan(str(path), device="cpu", steps=3, verify_steps=10, seeds=3)
    assert "MP518" in {f.code for f in seen.advice.findings}
    assert (seen.verification.verdict, seen.verification.reason[:36]) == (
        "inconclusive",
        "no weight changed in 3 FP32 steps, f",
    )
