"""MP501 to MP509: weights and optimizer state in 16 bits, on both sides of every threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from capture_samples import WEIGHT_GRADIENT, table
from loop_samples import LINE, event, found, groups, severities
from mpdiag.loop import LoopEvent, LoopFacts

# MP501 no-master-weights


@pytest.mark.parametrize(("dtype", "severity"), [("float16", "error"), ("bfloat16", "warning")])
def test_mp501_weights_in_16_bits_without_a_copy(dtype, severity):
    (f,) = found("MP501", groups(dtype=dtype))
    assert (f.severity, f.subject, f.evidence["elements"]) == (severity, "fc.weight", 100)
    name = {"float16": "FP16", "bfloat16": "BF16"}[dtype]
    assert f.message == f"AdamW steps 100 weights in {name} (fc.weight and so on) and keeps no FP32 copy"


def test_mp501_an_fp32_copy_in_the_optimizer_is_enough():
    assert found("MP501", groups(whole_updates=True)) == []


# MP502 half-and-autocast


def test_mp502_fp16_weights_and_a_region():
    facts = replace(event(LoopEvent.AUTOCAST, "cuda", dtype="float16"), trainable={"float32": 5, "float16": 7})
    (f,) = found("MP502", facts)
    assert (f.severity, f.subject, f.source) == ("error", "the model", LINE)
    assert f.message.startswith("7 trainable weights are FP16, and the job uses an autocast region")


def test_mp502_fp16_weights_whose_gradients_need_a_scale():
    tables = (table("fc.weight", WEIGHT_GRADIENT, {-26: 500, -12: 500}),)
    (f,) = found("MP502", LoopFacts({"float16": 7}), *tables)
    assert "FP16 gradients need a loss scale" in f.message


def test_mp502_fp16_weights_alone_may_train_without_a_scaler():
    assert found("MP502", LoopFacts({"float16": 7})) == []


def test_mp502_bfloat16_weights_are_no_matter():
    assert found("MP502", replace(event(LoopEvent.AUTOCAST, "cuda", dtype="bfloat16"), trainable={"bfloat16": 7})) == []


# MP503 batch-norm-in-half


def test_mp503_names_the_first_and_counts_the_others():
    (f,) = found("MP503", LoopFacts({}, half_norms=("bn1", "bn2", "bn3")))
    assert (f.severity, f.subject) == ("warning", "bn1")
    assert f.message == "bn1 keeps its weights or running statistics in 16 bits, and so do 2 more"


# MP504 decay-lost


@pytest.mark.parametrize(
    ("dtype", "decay", "says"),
    [
        ("float16", 2.0**-12, True),
        ("float16", 2.0**-11.9, False),
        ("bfloat16", 2.0**-9, True),
        ("bfloat16", 2.0**-8.9, False),
        ("float16", 0.0, False),
    ],
)
def test_mp504_a_decay_that_rounds_to_one(dtype, decay, says):
    assert bool(found("MP504", groups(dtype=dtype, lr=1.0, weight_decay=decay))) is says


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 2.0**-12), (torch.bfloat16, 2.0**-9)])
def test_mp504_torch_rounds_there_too(dtype, limit):
    # the weights at which half a unit in the last place is smallest beside the weight: just below a power of two
    weights = torch.linspace(1.0, 1.99, 64).to(dtype)
    assert torch.equal(weights * (1 - limit), weights)
    assert not torch.equal(weights * (1 - 2.1 * limit), weights)


@pytest.mark.parametrize("exempt", [{"fused": True}, {"decoupled": False}, {"whole_updates": True}])
def test_mp504_what_rounds_otherwise_is_no_matter(exempt):
    assert found("MP504", groups(**exempt)) == []


# MP505 average-in-half


@pytest.mark.parametrize(
    ("dtype", "step", "says"),
    [
        ("float16", 1e-4, True),
        ("float16", 2.0**-11, False),
        ("bfloat16", 1e-3, True),
        ("bfloat16", 2.0**-8, False),
        ("float16", 1e-3, False),
    ],
)
def test_mp505_an_average_whose_steps_vanish(dtype, step, says):
    findings = found("MP505", event(LoopEvent.AVERAGE, "ema.weight", dtype=dtype, value=step))
    assert bool(findings) is says
    assert all((f.severity, f.subject, f.source) == ("warning", "ema.weight", LINE) for f in findings)


@pytest.mark.parametrize(("dtype", "decay"), [(torch.float16, 0.9999), (torch.bfloat16, 0.999)])
def test_mp505_such_an_average_really_stays(dtype, decay):
    average = torch.linspace(1.0, 1.9, 10).to(dtype)
    moved = average.clone()
    for _ in range(10):
        moved.mul_(decay).add_((average + 0.5).to(dtype), alpha=1 - decay)
    assert torch.equal(moved, average)


# MP506 optimizer-eps-is-zero


@pytest.mark.parametrize(("eps", "says"), [(1e-8, True), (2.0**-25, True), (2.0**-24.9, False), (1e-4, False)])
def test_mp506_an_eps_that_is_zero_in_fp16(eps, says):
    assert severities(found("MP506", groups(eps=eps))) == ["error"] * says


IN_BFLOAT16 = {"dtype": "bfloat16", "state": {"exp_avg_sq": "bfloat16"}}


@pytest.mark.parametrize(
    "exempt", [{"fused": True}, {"state": {"exp_avg": "float32"}}, {"state": None}, {"eps": None}, IN_BFLOAT16]
)
def test_mp506_state_that_holds_the_eps_is_no_matter(exempt):
    assert found("MP506", groups(**exempt)) == []


def test_mp506_adam_in_fp16_really_gives_nan_for_a_gradient_of_zero():
    weight = nn.Parameter(torch.ones(1, dtype=torch.float16))
    weight.grad = torch.zeros_like(weight)
    torch.optim.Adam([weight]).step()
    assert weight.isnan().all()


# MP507 second-moment-underflow


def half_gradient(bins: dict[int, int]) -> Any:
    return table("fc.weight", WEIGHT_GRADIENT, bins, dtype="float16")


def test_mp507_gradients_too_small_for_the_second_moment():
    # |g| <= 5.46e-3 = 2^-7.5 for a beta2 of 0.999: bins up to -9 are below it whole
    (f,) = found("MP507", groups(), half_gradient({-9: 6, -8: 94}))
    assert (f.severity, f.subject) == ("error", "fc.weight")
    assert f.evidence["share"] == 0.06
    assert f.evidence["limit"] == pytest.approx(5.46e-3, rel=1e-3)


def test_mp507_a_twentieth_is_left_alone():
    assert found("MP507", groups(), half_gradient({-9: 5, -8: 95})) == []


def test_mp507_a_beta2_of_095_holds_smaller_gradients():
    assert found("MP507", groups(betas=(0.9, 0.95)), half_gradient({-10: 100})) == []
    assert severities(found("MP507", groups(betas=(0.9, 0.95)), half_gradient({-12: 100}))) == ["error"]


@pytest.mark.parametrize("exempt", [{"fused": True}, {"state": {"exp_avg_sq": "float32"}}, {"betas": None}])
def test_mp507_a_second_moment_in_fp32_is_no_matter(exempt):
    assert found("MP507", groups(**exempt), half_gradient({-20: 100})) == []


def test_mp507_fp32_gradients_are_not_counted():
    assert found("MP507", groups(), table("fc.weight", WEIGHT_GRADIENT, {-20: 100})) == []


# MP508 beta-rounds-to-one


@pytest.mark.parametrize(
    ("betas", "dtype", "says"),
    [((0.8984375, 1.0), "bfloat16", True), ((0.9, 0.999), "bfloat16", False), ((0.9, 1.0), None, False)],
)
def test_mp508_a_beta_of_one_in_16_bits(betas, dtype, says):
    assert severities(found("MP508", groups(betas=betas, betas_dtype=dtype))) == ["warning"] * says


def test_mp508_bfloat16_really_makes_it_one():
    assert float(torch.tensor(0.999, dtype=torch.bfloat16)) == 1.0


# MP509 counter-in-half


@pytest.mark.parametrize(("dtype", "stalls"), [("float16", 2048), ("bfloat16", 256)])
def test_mp509_says_where_a_count_stands_still(dtype, stalls):
    (f,) = found("MP509", event(LoopEvent.COUNTER, "seen", dtype=dtype))
    assert (f.severity, f.subject, f.evidence["limit"], f.source) == ("warning", "seen", stalls, LINE)
    held = torch.tensor(float(stalls), dtype=getattr(torch, dtype))
    assert held + 1 == held
    assert held != held - 1
