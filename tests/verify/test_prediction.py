"""What FP32 foretold against what FP16 did: exact on tiny jobs, small on real kinds of model."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mpdiag.capture.autocast_types import observe
from mpdiag.diagnosis import TensorKind
from mpdiag.foretold import Prediction, TensorForecast, quantile, summarized
from mpdiag.target import load_job
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session
from mpdiag.verify.cascade.step import Rounding
from mpdiag.verify.prediction import compare_with_fp16

CPU = torch.device("cpu")
TARGETS = Path(__file__).parents[1] / "targets"


def forecast(predicted, observed, cascade=None, noise=False, **other):
    fields = {"name": "fc", "kind": "activation_gradient", "trained_steps": 0, "log2_scale": 0, "elements": 10}
    fields |= {"predicted_overflow": 0.0, "observed_overflow": 0.0}
    return TensorForecast(
        predicted_underflow=predicted, observed_underflow=observed, cascade_underflow=cascade, noise=noise,
        **(fields | other),
    )  # fmt: skip


def test_the_error_is_in_percentage_points_and_takes_the_cascade_where_there_is_one():
    assert forecast(0.25, 0.375).error_points == 12.5
    assert forecast(0.25, 0.375, cascade=0.5).error_points == 12.5
    assert forecast(0.25, 0.5, cascade=0.5).error_points == 0
    assert forecast(0.25, 0.5, cascade=0.5).alone_error_points == 25


def test_noise_is_listed_and_does_not_count():
    found = summarized([forecast(0.0, 0.0), forecast(1.0, 0.0, noise=True)], emulated=True)
    assert (len(found.tensors), found.noise_tensors, found.p95_error_points) == (2, 1, 0.0)


def test_nothing_compared_has_no_error():
    assert summarized([], emulated=False) == Prediction((), False)


def test_an_overflow_that_nothing_foretold_is_named_and_not_compared():
    found = summarized([forecast(0.0, 0.0, observed_overflow=0.5), forecast(0.5, 0.25, name="other")], emulated=False)
    assert found.overflow_missed == ("fc (activation_gradient)",)
    assert (found.overflowed_tensors, found.median_error_points) == (1, 25.0)


def test_what_overflows_where_an_overflow_was_foretold_is_its_consequence():
    told = forecast(0.0, 0.0, predicted_overflow=0.5, observed_overflow=0.5, name="told")
    consequence = forecast(0.0, 0.0, observed_overflow=1.0)
    elsewhere = forecast(0.0, 0.0, observed_overflow=1.0, trained_steps=20, name="later")
    found = summarized([told, consequence, elsewhere], emulated=False)
    assert found.overflow_missed == ("later (activation_gradient)",)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.95, 4.0), (0.25, 1.0), (0.0, 1.0)])
def test_a_quantile_is_the_first_value_with_that_share_at_or_below(share, expected):
    assert quantile([1.0, 2.0, 3.0, 4.0], share) == expected


# a chain of two linears whose second has the gradient that is given, exactly


GRADIENT = [1.0, 2.0**-20, 2.0**-26, 2.0**-32]


def chain():
    first, second = nn.Linear(1, 4, bias=False), nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        first.weight.fill_(1.0)
        second.weight.copy_(torch.eye(4))
    return nn.Sequential(first, second)


def chain_job(factor=1.0):
    def losses(model, batch):
        yield ONLY, (model(batch).float() * torch.tensor(GRADIENT) * factor).sum()

    return Job(
        name="chain",
        source="chain",
        build_model=chain,
        train_batches=lambda: [torch.ones(1, 1)],
        losses=losses,
        build_optimizers=lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=0.0)},
    )


def compared(job, scales):
    start = job.start(0, 1)
    types = observe(job, start, CPU)
    names = [(TensorKind.ACTIVATION_GRADIENT, str(i)) for i in (0, 1)]
    assert types.outputs["0"] == types.outputs["1"] == "float16"
    found = compare_with_fp16(job, start, CPU, dict.fromkeys(names, "float16"), scales, 1)
    return {(t.name, t.trained_steps, t.log2_scale): t for t in found.tensors}


def test_the_underflow_of_a_chain_is_that_on_paper():
    for (_, _, scale), found in compared(chain_job(), (0, 5)).items():
        expected = 0.5 if scale == 0 else 0.25  # at 2^5 the third is 2^-21, the fourth 2^-27
        assert found.elements == 4
        assert found.predicted_underflow == found.cascade_underflow == found.observed_underflow == expected


def test_both_states_and_all_scales_are_compared():
    assert {(trained, scale) for _, trained, scale in compared(chain_job(), (0, 5))} == {(0, 0), (0, 5), (1, 0), (1, 5)}


def test_an_overflowing_scale_is_foretold_and_seen():
    found = compared(chain_job(), (17,))["1", 0, 17]
    assert (found.predicted_overflow, found.observed_overflow) == (0.25, 0.25)


def mixing():
    """The second layer's weight brings tiny gradients back to size: what FP16 flushed before is lost all the same."""
    model = chain()
    with torch.no_grad():
        model[1].weight.mul_(2.0**14)
    return model


def test_what_became_zero_stays_zero_upstream_and_only_the_cascade_knows():
    job = chain_job()
    job.build_model = mixing
    found = compared(job, (0,))["0", 0, 0]
    # 2^14 times the gradient is 2^-12 and 2^-18 where FP16 has lost 2^-26 and 2^-32
    assert found.predicted_underflow == 0.0
    assert found.cascade_underflow == found.observed_underflow == 0.5


class ByHand(nn.Module):
    """The second product of the chain, in the model's own forward."""

    def __init__(self):
        super().__init__()
        self.first, self.second = chain()
        with torch.no_grad():
            self.second.weight.mul_(2.0**14)

    def forward(self, batch):
        return self.first(batch) @ self.second.weight.T


def test_the_cascade_goes_through_products_that_no_module_computes():
    job = chain_job()
    job.build_model = ByHand
    start = job.start(0, 1)
    keys = {(TensorKind.ACTIVATION_GRADIENT, "first"): "float16"}
    found = compare_with_fp16(job, start, CPU, keys, (0,), 1).tensors[0]
    assert found.cascade_underflow == found.observed_underflow == 0.5


def test_the_rounding_is_taken_off_again():
    job = chain_job()
    start = job.start(0, 1)
    with open_session(job, start, FP32_IEEE, CPU) as run:
        with Rounding(frozenset({"1"}), 0).on(run.model):
            pass
        run.step(run.place(start.batch(0)))
        assert run.model[0].weight.grad.flatten().tolist() == GRADIENT


class Unwelcome(nn.Sequential):
    """A model that cannot bear somebody watching its operators."""

    def forward(self, batch):
        if torch.overrides._is_torch_function_mode_enabled():
            raise RuntimeError("not under a mode")
        return super().forward(batch)


def test_a_cascade_that_fails_leaves_the_counts_alone_and_says_why():
    job = chain_job()
    job.build_model = lambda: Unwelcome(*chain())
    start = job.start(0, 1)
    keys = {(TensorKind.ACTIVATION_GRADIENT, "0"): "float16"}
    found = compare_with_fp16(job, start, CPU, keys, (0,), 1)
    assert "not under a mode" in found.cascade_reason
    assert found.tensors[0].cascade_underflow is None
    assert found.tensors[0].error_points == found.tensors[0].alone_error_points == 0


def test_a_cascade_that_does_not_fail_gives_no_reason():
    job = chain_job()
    found = compare_with_fp16(job, job.start(0, 1), CPU, {(TensorKind.ACTIVATION_GRADIENT, "0"): "float16"}, (0,), 1)
    assert found.cascade_reason is None


def saturating():
    """A tanh that FP16 rounds to 1 for the last of four units."""
    first = nn.Linear(1, 4, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[0.5], [1.0], [2.0], [6.0]]))
    return nn.Sequential(first, nn.Tanh())


def test_the_gradient_that_a_saturated_tanh_loses_in_fp16_is_foretold_by_the_cascade_alone():
    job = chain_job()
    job.build_model = saturating
    job.losses = lambda model, batch: iter([(ONLY, model(batch).float().sum())])
    keys = {(TensorKind.ACTIVATION_GRADIENT, "0"): "float16", (TensorKind.ACTIVATION_GRADIENT, "1"): "float16"}
    found = compare_with_fp16(job, job.start(0, 1), CPU, keys, (0,), 1)
    told = next(t for t in found.tensors if t.name == "0" and t.trained_steps == 0)
    assert told.predicted_underflow == 0
    assert told.cascade_underflow == told.observed_underflow == 0.25


@pytest.mark.parametrize("name", ["resnet", "lstm", "encoder", "unet", "vae", "convnext", "gan"])
def test_real_kinds_of_model_do_what_their_counts_foretell(name):
    job = load_job(str(TARGETS / f"{name}.py"))
    start = job.start(0, 3)
    types = observe(job, start, CPU)
    keys = {(TensorKind.ACTIVATION_GRADIENT, n): dtype for n, dtype in types.outputs.items()}
    keys |= {(TensorKind.WEIGHT_GRADIENT, n): "float16" for n in types.cast}
    found = compare_with_fp16(job, start, CPU, keys, (0, 12), 3)
    assert found.emulated
    assert found.median_error_points <= 0.1
    assert found.p95_error_points <= 1.0
    assert not found.overflow_missed
