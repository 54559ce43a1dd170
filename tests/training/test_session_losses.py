"""What a loss must be to be trained, and what is said of one that is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mpdiag.errors import MpdiagError, UsageError, UserCodeError
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import FP32_IEEE, Precision
from session_samples import FP16_SCALED, job, mean_output, one_weight, running, step

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
