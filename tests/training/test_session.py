"""One training loop for all precisions: GradScaler's semantics, several optimizers, and what a loss must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.errors import MpdiagError, UsageError, UserCodeError
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import FP32_IEEE, Precision, emulated, in_force
from mpdiag.training.session import Session, open_session, require_finite, total

CPU = torch.device("cpu")
FP16_SCALED = Precision("FP16", autocast=torch.float16, log2_scale=15)  # 2^16 alone overflows where a loss enters FP16
FP16_UNSCALED = Precision("FP16, scale 1", autocast=torch.float16)
FP16_PURE = Precision("FP16, pure", autocast=torch.float16, pure=True)


def one_weight(value: float = 0.5) -> nn.Module:
    """y = w * x with one known weight."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def mean_output(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch).float().mean()


def sgd(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    return {ONLY: torch.optim.SGD(model.parameters(), lr=1.0)}


def job(
    compute_loss: Callable[[nn.Module, Any], Any] = mean_output,
    build_model: Callable[[], nn.Module] = one_weight,
    build_optimizers: Callable[[nn.Module], Any] = sgd,
    batches: Any = None,
    losses: Callable[..., Any] | None = None,
    evaluate: Any = None,
) -> Job:
    def only(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, compute_loss(model, batch)

    return Job(
        name="tiny",
        source="tiny.py",
        build_model=build_model,
        train_batches=lambda: [torch.ones(1, 1)] if batches is None else batches,
        losses=losses or only,
        build_optimizers=build_optimizers,
        evaluate=evaluate,
    )


@contextmanager
def running(precision: Precision, the_job: Job | None = None) -> Iterator[Session]:
    the_job = the_job or job()
    with open_session(the_job, the_job.start(0, 8), precision, CPU) as run:
        yield run


def step(run: Session, value: float = 1.0) -> dict[str, torch.Tensor]:
    return run.step(run.place(torch.full((1, 1), value)))


def scale(run: Session) -> float:
    return run.scaler.get_scale()


def weight(run: Session) -> float:
    return run.model.weight.item()


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


# the scaler


def test_a_scaled_step_gives_the_unscaled_update():
    with running(FP16_SCALED) as run:
        step(run, 0.25)
        assert weight(run) == 0.25
        assert scale(run) == 32768.0


def test_the_scaled_loss_comes_back_unscaled():
    with running(FP16_SCALED) as run:
        assert step(run, 0.25)["loss"].item() == 0.125


def test_an_overflow_skips_the_step_and_halves_the_scale():
    with running(FP16_SCALED) as run:
        step(run, 2.0)  # the weight's gradient, 2 * 2^15, is beyond FP16
        assert weight(run) == 0.5
        assert scale(run) == 16384.0


def test_after_the_scale_has_come_down_the_step_is_taken():
    with running(FP16_SCALED) as run:
        for _ in range(3):
            step(run, 4.0)
        # 4 * 2^15 and 4 * 2^14 overflow, 4 * 2^13 does not
        assert scale(run) == 2.0**13
        assert weight(run) == 0.5 - 4.0


def test_the_scale_doubles_after_growth_interval_good_steps():
    precision = Precision("FP16", autocast=torch.float16, log2_scale=3, growth_interval=3)
    with running(precision) as run:
        scales = []
        for _ in range(7):
            step(run, 2.0**-6)
            scales.append(scale(run))
    assert scales == [8.0, 8.0, 16.0, 16.0, 16.0, 32.0, 32.0]


def test_an_overflow_starts_the_growth_interval_anew():
    precision = Precision("FP16", autocast=torch.float16, log2_scale=3, growth_interval=3)
    with running(precision) as run:
        scales = []
        for value in (1.0, 1.0, 16384.0, 1.0, 1.0, 1.0):
            step(run, value)
            scales.append(scale(run))
    assert scales == [8.0, 8.0, 4.0, 4.0, 4.0, 8.0]


def test_the_initial_scale_is_two_to_the_log2_scale():
    with running(Precision("FP16", autocast=torch.float16, log2_scale=0)) as run:
        assert scale(run) == 1.0


def test_a_small_gradient_survives_with_a_scale_and_is_lost_without():
    tiny = lambda model, batch: model(batch).float().mean() * 2.0**-26
    updates = {}
    for precision in (FP32_IEEE, FP16_SCALED, FP16_UNSCALED):
        with running(precision, job(tiny, build_model=lambda: one_weight(0.0))) as run:
            step(run)
            updates[precision.name] = weight(run)
    assert updates == {"FP32": -(2.0**-26), "FP16": -(2.0**-26), "FP16, scale 1": 0.0}


def test_the_unscaled_arm_has_no_scaler_and_takes_the_step():
    with running(FP16_UNSCALED) as run:
        step(run, 0.25)
        assert run.scaler is None
        assert weight(run) == 0.25


def test_the_unscaled_arm_takes_a_step_of_an_infinite_gradient():
    with running(FP16_UNSCALED, job(lambda m, b: m(b).float().mean() * 2.0**17)) as run:
        step(run)
        assert weight(run) == -math.inf


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


# several optimizers


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.d = one_weight(1.0), one_weight(1.0)


def gan_job(seen: list[Any], order: tuple[str, ...] = ("discriminator", "generator"), factor: float = 1.0) -> Job:
    def losses(model: Gan, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        for name in order:
            seen.append((name, model.g.weight.item(), model.d.weight.item()))
            fake = model.g(batch)
            if name == "discriminator":
                yield name, model.d(fake.detach()).float().mean() * factor
            else:
                yield name, model.d(fake).float().mean()

    def optimizers(model: Gan) -> dict[str, torch.optim.Optimizer]:
        return {
            "generator": torch.optim.SGD(model.g.parameters(), lr=0.5),
            "discriminator": torch.optim.SGD(model.d.parameters(), lr=0.25),
        }

    return job(build_model=Gan, build_optimizers=optimizers, losses=losses)


@pytest.mark.parametrize("precision", [FP32_IEEE, Precision("FP16", torch.float16, log2_scale=8)], ids=["FP32", "FP16"])
def test_each_optimizer_of_a_gan_steps_at_its_own_time(precision):
    seen: list[Any] = []
    with running(precision, gan_job(seen)) as run:
        losses = step(run)
        # d: 1 - 0.25 * 1; then g sees the new d: 1 - 0.5 * 0.75
        assert (run.model.g.weight.item(), run.model.d.weight.item()) == (0.625, 0.75)
    assert seen == [("discriminator", 1.0, 1.0), ("generator", 1.0, 0.75)]
    assert {name: loss.item() for name, loss in losses.items()} == {"discriminator": 1.0, "generator": 0.75}


def test_a_gan_runs_its_generator_to_the_end_of_the_iteration():
    seen: list[Any] = []

    def losses(model: nn.Module, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, mean_output(model, batch)
        seen.append("after the last step")

    with running(FP32_IEEE, job(losses=losses)) as run:
        step(run)
    assert seen == ["after the last step"]


def test_one_optimizers_overflow_skips_that_step_only_and_halves_the_one_scale():
    with running(Precision("FP16", torch.float16, log2_scale=8), gan_job([], factor=2.0**9)) as run:
        step(run)
        assert run.model.d.weight.item() == 1.0
        assert run.model.g.weight.item() == 1.0 - 0.5
        assert scale(run) == 128.0


def test_the_scale_is_updated_once_a_step_however_many_optimizers():
    precision = Precision("FP16", torch.float16, log2_scale=8, growth_interval=2)
    with running(precision, gan_job([])) as run:
        step(run)
        assert scale(run) == 256.0
        step(run)
        assert scale(run) == 512.0


def test_an_optimizer_that_steps_twice_in_an_iteration_steps_twice():
    order = ("discriminator", "discriminator", "generator")
    with running(FP32_IEEE, gan_job([], order)) as run:
        step(run)
        assert run.model.d.weight.item() == 0.5


def test_an_optimizer_that_steps_twice_in_an_iteration_does_so_with_a_scaler_too():
    # a WGAN's critic; torch's scaler lets each optimizer step once between two updates
    order = ("discriminator", "discriminator", "generator")
    with running(Precision("FP16", torch.float16, log2_scale=8), gan_job([], order)) as run:
        step(run)
        assert run.model.d.weight.item() == 0.5


def test_a_single_loss_steps_all_optimizers():
    optimizers = lambda m: {n: torch.optim.SGD(p.parameters(), lr=1.0) for n, p in (("a", m[0]), ("b", m[1]))}
    model = lambda: nn.Sequential(one_weight(2.0), one_weight(3.0))
    with running(FP32_IEEE, job(build_model=model, build_optimizers=optimizers)) as run:
        step(run)
        assert [p.item() for p in run.model.parameters()] == [2.0 - 3.0, 3.0 - 2.0]


# what a loss must be


def refusal(the_job: Job, precision: Precision = FP32_IEEE) -> MpdiagError:
    with pytest.raises(MpdiagError) as caught, running(precision, the_job) as run:
        step(run)
    return caught.value


@pytest.mark.parametrize(
    ("loss", "slug", "words"),
    [
        (lambda m, b: m(b).mean().item(), "loss-not-a-tensor", "the loss is float"),
        (lambda m, b: None, "loss-not-a-tensor", "the loss is NoneType"),
        (lambda m, b: {"loss": m(b).mean()}, "loss-not-a-tensor", "the loss is dict"),
        (lambda m, b: m(b).expand(2, 3), "loss-not-scalar", "shape (2, 3)"),
        (lambda m, b: m(b)[:0], "loss-not-scalar", "shape (0, 1)"),
        (lambda m, b: m(b).mean().detach(), "loss-no-grad", "does not require a gradient"),
        (lambda m, b: b.mean(), "loss-no-grad", "does not require a gradient"),
    ],
    ids=["float", "none", "dict", "matrix", "empty", "detached", "without the model"],
)
@pytest.mark.parametrize("precision", [FP32_IEEE, FP16_SCALED], ids=["FP32", "FP16"])
def test_a_loss_that_cannot_be_trained_is_refused_with_its_slug(loss, slug, words, precision):
    error = refusal(job(loss), precision)
    assert isinstance(error, UsageError)
    assert error.slug == slug
    assert words in error.message
    assert error.message.startswith("tiny.py: ")


@pytest.mark.parametrize("several", [dict, list, tuple], ids=lambda kind: kind.__name__)
def test_several_losses_at_once_are_told_to_be_summed_or_yielded(several):
    hint = refusal(job(lambda m, b: several({"a": m(b).mean(), "b": m(b).sum()}.items()))).hint
    assert "their sum" in hint
    assert "compute_losses(model, batch), which yields (optimizer name, loss)" in hint
    assert ".item()" not in hint


def test_a_loss_of_shape_one_by_one_is_taken_as_a_scalar():
    with running(FP32_IEEE, job(lambda m, b: m(b))) as run:
        assert step(run, 0.25)["loss"].shape == ()


def test_a_loss_under_no_grad_is_refused():
    @torch.no_grad()
    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).mean()

    assert refusal(job(loss)).slug == "loss-no-grad"


def test_a_model_whose_every_parameter_is_frozen_is_refused():
    assert refusal(job(build_model=lambda: one_weight().requires_grad_(False))).slug == "loss-no-grad"


def test_a_module_without_parameters_raises_the_optimizers_own_error():
    error = refusal(job(build_model=nn.Identity))
    assert isinstance(error, UserCodeError)
    assert "empty parameter list" in error.message
    assert "building the optimizer" in error.message


def test_a_frozen_part_stays_as_it_is():
    def model() -> nn.Module:
        built = nn.Sequential(one_weight(2.0), one_weight(3.0))
        built[0].requires_grad_(False)
        return built

    with running(FP32_IEEE, job(build_model=model)) as run:
        step(run)
        assert [p.item() for p in run.model.parameters()] == [2.0, 1.0]


@pytest.mark.parametrize("precision", [FP32_IEEE, FP16_SCALED], ids=["FP32", "FP16"])
def test_a_parameter_outside_the_loss_stays_as_it_is(precision):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = one_weight(2.0), one_weight(3.0)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.used(value)

    with running(precision, job(build_model=Two)) as run:
        step(run, 0.5)
        assert (run.model.used.weight.item(), run.model.unused.weight.item()) == (1.5, 3.0)


def test_losses_that_yield_nothing_are_refused():
    error = refusal(job(losses=lambda model, batch: iter(())))
    assert (error.slug, error.message) == ("no-loss", "tiny.py: compute_losses yielded nothing")


@pytest.mark.parametrize(
    "part", [torch.ones(()), ("a", "b", "c"), None, 3.0], ids=["tensor", "triple", "none", "float"]
)
def test_losses_that_yield_anything_but_a_pair_are_refused(part):
    assert refusal(job(losses=lambda model, batch: iter([part]))).slug == "no-loss"


def test_losses_that_return_instead_of_yielding_are_refused():
    error = refusal(job(losses=lambda model, batch: mean_output(model, batch)))
    assert error.slug == "no-loss"


def test_losses_returned_as_a_list_are_computed_in_the_region_too():
    with running(FP16_SCALED, job(losses=lambda m, b: [(ONLY, m(b).mean())])) as run:
        step(run)
        assert run.loss_dtype == torch.float16


def test_an_error_in_losses_that_do_not_yield_is_the_users():
    error = refusal(job(losses=lambda model, batch: 1 / 0))
    assert error.message == "ZeroDivisionError while computing the loss: division by zero"


def test_a_loss_of_a_name_without_optimizer_is_refused_with_both_names():
    def losses(model: nn.Module, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield "critic", mean_output(model, batch)

    optimizers = lambda m: {"actor": torch.optim.SGD(m.parameters(), lr=1.0)}
    error = refusal(job(losses=losses, build_optimizers=optimizers))
    assert error.slug == "no-optimizer"
    assert error.message == "tiny.py: compute_losses yielded 'critic', build_optimizers has ['actor']"


def test_a_job_without_optimizers_is_refused():
    assert refusal(job(build_optimizers=lambda model: {})).slug == "target-no-optimizer"


@pytest.mark.parametrize(
    ("the_job", "doing"),
    [
        (job(lambda m, b: 1 / 0), "computing the loss"),
        (job(build_optimizers=lambda m: 1 / 0), "building the optimizer"),
        (job(build_model=lambda: 1 / 0), "building the model"),
    ],
    ids=["loss", "optimizer", "model"],
)
def test_what_the_users_code_raises_says_what_was_being_done(the_job, doing):
    error = refusal(the_job)
    assert isinstance(error, UserCodeError)
    assert error.message == f"ZeroDivisionError while {doing}: division by zero"


def test_an_error_in_backward_is_the_users():
    def hook(_: torch.Tensor) -> None:
        raise ValueError("no way back")

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        output = model(batch)
        output.register_hook(hook)
        return output.mean()

    assert refusal(job(loss)).message == "ValueError while running backward: no way back"


def test_after_a_failing_step_the_policy_is_lifted():
    original = torch.autocast.__init__
    refusal(job(lambda m, b: 1 / 0), FP16_SCALED)
    assert torch.autocast.__init__ is original
    assert not torch.is_autocast_enabled("cpu")


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
