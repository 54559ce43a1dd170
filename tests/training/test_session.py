"""One training loop for all precisions: FP32, autocast and pure 16 bits, its metric and its totals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.errors import MpdiagError
from mpdiag.target.job import ONLY
from mpdiag.training.precision import FP32_IEEE, Precision, emulated, in_force
from mpdiag.training.session import open_session, require_finite, total
from session_samples import (
    CPU,
    FP16_PURE,
    FP16_SCALED,
    FP16_UNSCALED,
    job,
    mean_output,
    one_weight,
    running,
    step,
    weight,
)

# FP32


def test_an_fp32_step_is_plain_gradient_descent():
    with running(FP32_IEEE) as run:
        losses = step(run, 0.25)
        assert weight(run) == 0.5 - 0.25
    assert {name: loss.item() for name, loss in losses.items()} == {"loss": 0.125}


def test_fp32_trains_without_a_scaler():
    with running(FP32_IEEE) as run:
        assert run.scaler is None


def test_the_losses_come_back_detached():
    with running(FP32_IEEE) as run:
        assert not step(run)["loss"].requires_grad


def test_gradients_do_not_accumulate_from_step_to_step():
    with running(FP32_IEEE) as run:
        step(run)
        step(run)
        assert weight(run) == 0.5 - 1.0 - 1.0


def test_no_gradient_lies_in_memory_while_the_loss_is_computed():
    seen = []

    def noting(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(model.weight.grad)
        return mean_output(model, batch)

    with running(FP32_IEEE, job(noting)) as run:
        step(run)
        assert run.model.weight.grad is not None  # for who looks between steps
        step(run)
    assert seen == [None, None]


def test_two_sessions_from_one_start_are_bit_identical():
    the_job = job(build_model=lambda: nn.Linear(4, 3), batches=[torch.randn(8, 4)])
    runs = []
    for _ in range(2):
        with open_session(the_job, the_job.start(3, 1), FP32_IEEE, CPU) as run:
            losses = [total(run.step(run.place(the_job.start(3, 1).batch(i)))) for i in range(3)]
            runs.append((losses, run.model.weight.detach().clone()))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_fp32_products_are_ieee_whatever_the_user_set():
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with running(FP32_IEEE):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_the_placed_batch_is_a_copy():
    batch = {"a": torch.ones(2), "b": [torch.arange(3)]}
    with running(FP32_IEEE) as run:
        placed = run.place(batch)
        placed["a"] += 1
    assert batch["a"].tolist() == [1.0, 1.0]
    assert placed["b"][0].dtype == torch.int64


# autocast


def test_an_autocast_run_keeps_fp32_master_weights():
    with running(FP16_SCALED) as run:
        step(run)
        assert run.model.weight.dtype == torch.float32
        assert run.model.weight.grad.dtype == torch.float32


def test_the_loss_is_computed_inside_the_region():
    with running(FP16_SCALED, job(lambda model, batch: model(batch).mean())) as run:
        step(run)
        assert run.loss_dtype == torch.float16


def test_backward_and_the_optimizer_run_outside_the_region():
    seen = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(("step", torch.is_autocast_enabled("cpu")))
            return super().step(closure)

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        output = model(batch)
        output.register_hook(lambda _: seen.append(("backward", torch.is_autocast_enabled("cpu"))))
        seen.append(("forward", torch.is_autocast_enabled("cpu")))
        return output.float().mean()

    the_job = job(loss, build_optimizers=lambda m: {ONLY: Watching(m.parameters(), lr=1.0)})
    with running(FP16_UNSCALED, the_job) as run:
        step(run)
    assert seen == [("forward", True), ("backward", False), ("step", False)]


def test_bf16_autocast_computes_in_bf16():
    with running(Precision("BF16", autocast=torch.bfloat16), job(lambda m, b: m(b).mean())) as run:
        step(run)
        assert run.loss_dtype == torch.bfloat16


def test_a_weight_stepped_in_one_step_is_seen_in_the_next():
    with running(FP16_SCALED) as run:
        losses = [step(run, 0.25)["loss"].item() for _ in range(3)]
    assert losses == [0.125, 0.0625, 0.0]


def test_only_autocast_off_cuda_is_emulated():
    assert emulated(FP16_SCALED, CPU)
    assert not emulated(FP32_IEEE, CPU)
    assert not emulated(FP16_SCALED, torch.device("cuda"))


def test_the_region_of_fp32_casts_nothing():
    with in_force(FP32_IEEE, CPU) as region, region():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


# a pure 16-bit model


def test_a_pure_policy_keeps_parameters_and_gradients_in_float16():
    with running(FP16_PURE) as run:
        step(run)
        assert run.model.weight.dtype == torch.float16
        assert run.model.weight.grad.dtype == torch.float16


def test_a_pure_policy_loses_an_update_below_half_an_ulp_of_its_weight():
    tiny = lambda model, batch: model(batch).float().mean() * 2.0**-12
    weights = {}
    for precision in (FP16_UNSCALED, FP16_PURE):
        with running(precision, job(tiny, build_model=lambda: one_weight(1.5))) as run:
            step(run)
            weights[precision.name] = weight(run)
    assert weights == {"FP16, scale 1": 1.5 - 2.0**-12, "FP16, pure": 1.5}


def test_a_pure_policy_places_floating_tensors_in_half_and_leaves_integers():
    with running(FP16_PURE) as run:
        placed = run.place((torch.ones(2), torch.arange(2), torch.tensor([True])))
    assert [tensor.dtype for tensor in placed] == [torch.float16, torch.int64, torch.bool]


def test_a_pure_policy_hands_its_optimizer_the_half_parameters():
    with running(FP16_PURE) as run:
        (optimizer,) = run.optimizers.values()
        assert optimizer.param_groups[0]["params"][0] is run.model.weight


# the metric, and totals


def test_the_metric_is_evaluated_in_the_runs_precision_without_grad():
    seen = {}

    def evaluate(model: nn.Module) -> dict[str, float]:
        output = model(torch.ones(1, 1))
        seen["state"] = (output.dtype, output.requires_grad)
        return {"metric": 1.0}

    with running(FP16_SCALED, job(evaluate=evaluate)) as run:
        assert run.evaluate() == {"metric": 1.0}
    assert seen["state"] == (torch.float16, False)


def test_a_job_without_a_metric_has_none():
    with running(FP32_IEEE) as run:
        assert run.evaluate() is None


def test_the_total_of_several_losses_is_their_sum():
    assert total({"a": torch.tensor(1.5), "b": torch.tensor(2.0, dtype=torch.float16)}) == 3.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_fp32_loss_that_is_not_finite_stops_with_its_step(value):
    with pytest.raises(MpdiagError) as caught:
        require_finite(value, 7, "tiny.py")
    assert caught.value.slug == "loss-not-finite"
    assert caught.value.message == f"tiny.py: the FP32 loss is {value} at step 7"


@pytest.mark.parametrize("value", [0.0, -1.5, 1e308])
def test_a_finite_loss_goes_on(value):
    assert require_finite(value, 0, "tiny.py") is None
