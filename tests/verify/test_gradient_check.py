"""The first gradients of an arm beside FP32's: errors known on paper, what they are compared with, what has none."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mpdiag.accuracy import NO_GRADIENT_CHECK, GradientCheck, GradientError
from mpdiag.errors import UserCodeError
from mpdiag.report.gradient_words import caption, gradient_line, percent
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.verify.arms import Arm
from mpdiag.verify.gradient_check import DIFFERS, NOT_FINITE, RANDOM, affordable, arms_to_check, check_gradients
from mpdiag.verify.plan import Pace

CPU = torch.device("cpu")
SCALED = Arm("fp16", Precision("FP16 autocast", torch.float16, log2_scale=8))
UNSCALED = Arm("fp16-unscaled", Precision("FP16 autocast, no loss scale", torch.float16), control=True)
BF16 = Arm("bf16", Precision("BF16 autocast", torch.bfloat16))


def linear(*weights: float) -> nn.Module:
    """y = w . x without bias."""
    model = nn.Linear(len(weights), 1, bias=False)
    model.weight.data = torch.tensor([weights])
    return model


def made(model, batches, loss=lambda model, batch: model(batch).float().sum()) -> Job:
    """dloss/dw = x, for a batch of one row x."""

    def losses(model, batch):
        yield ONLY, loss(model, batch)

    return Job(
        name="tiny", source="tiny.py", build_model=lambda: model() if callable(model) else model,
        train_batches=lambda: [torch.tensor([row]) for row in batches], losses=losses,
        build_optimizers=lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=1.0)},
    )  # fmt: skip


def checked(job, *arms, batches=4) -> GradientCheck:
    return check_gradients(job, job.start(0, 4), arms, CPU, batches)


ROUNDED = 1 + 2.0**-12  # to 1 in FP16, whose step there is 2^-10


def test_the_error_of_a_gradient_known_on_paper():
    found = checked(made(lambda: linear(1.0, 1.0), [[ROUNDED, 2.0], [1.0, -2.0]]), SCALED)
    (fp16,) = found.arms
    exact = ROUNDED**2 + 4 + 1 + 4
    assert (found.batches, found.repeat_error) == (2, 0.0)
    assert fp16.gradient_error == pytest.approx(2.0**-12 / math.sqrt(exact), rel=1e-6)
    mean = ((ROUNDED + 1) / 2, 0.0)  # of the two gradients
    scatter = math.sqrt((ROUNDED - mean[0]) ** 2 + 4 + (1 - mean[0]) ** 2 + 4)  # of n - 1 = 1
    assert fp16.noise_share == pytest.approx(2.0**-12 / math.sqrt(2) / scatter, rel=1e-6)
    assert fp16.cosine == pytest.approx((ROUNDED + 4 + 1 + 4) / math.sqrt(exact * 10), rel=1e-12)
    assert (fp16.worst, fp16.worst_error) == ("weight", pytest.approx(fp16.gradient_error))
    # the losses are 3 + 2^-12, of which FP16 keeps 3, and -1
    assert fp16.loss_error == pytest.approx(2.0**-12 / (3 + 2.0**-12) / math.sqrt(2), rel=1e-6)


def test_a_gradient_below_fp16_is_lost_without_a_scale_and_exact_with_one():
    small = made(lambda: linear(1.0), [[1.0], [3.0]], lambda model, batch: model(batch).float().sum() * 2.0**-28)
    with_scale, without = checked(small, SCALED, UNSCALED).arms
    assert (with_scale.gradient_error, with_scale.cosine) == (0.0, 1.0)
    assert (without.gradient_error, without.cosine) == (1.0, None)
    assert without.noise_share == pytest.approx(math.sqrt((1 + 9) / 2) / math.sqrt(2))


def test_one_batch_tells_nothing_of_what_another_changes():
    (fp16,) = checked(made(lambda: linear(1.0), [[ROUNDED]]), SCALED).arms
    assert fp16.gradient_error > 0
    assert fp16.noise_share is None


def test_a_gradient_that_overflows_has_a_reason_and_no_figure():
    (fp16,) = checked(made(lambda: linear(1.0), [[60000.0]]), SCALED).arms
    assert fp16.gradient_error is None
    assert fp16.reason == "the gradient is not finite at 2^8"


def test_an_arm_that_raises_has_its_own_words_and_the_others_their_figures():
    def loss(model, batch):
        y = model(batch)
        if y.dtype == torch.float16:
            raise RuntimeError("no FP16 here")
        return y.float().sum()

    fp16, bf16 = checked(made(lambda: linear(1.0), [[1.0]], loss), SCALED, BF16).arms
    assert "no FP16 here" in fp16.reason
    assert bf16.reason is None


def test_what_fp32_raises_is_raised():
    def loss(model, batch):
        raise RuntimeError("never")

    with pytest.raises(UserCodeError):
        checked(made(lambda: linear(1.0), [[1.0]], loss), SCALED)


def test_dropout_is_off_and_what_else_is_drawn_leaves_a_reason():
    dropped = made(lambda: nn.Sequential(nn.Dropout(0.5), linear(1.0, 2.0)), [[1.0, 2.0]])
    assert checked(dropped, SCALED).arms[0].gradient_error == 0.0

    def drawn(model, batch):
        return model(nn.functional.dropout(batch, 0.5)).float().sum()

    assert checked(made(lambda: linear(*[1.0] * 64), [[1.0] * 64], drawn), SCALED) == GradientCheck(1, (), RANDOM, 0.0)


def test_the_dropout_inside_attention_and_recurrent_layers_is_off_too():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(4, 8, num_layers=2, dropout=0.5)
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5)

        def forward(self, x):
            y, _ = self.rnn(x[None])
            return self.attention(y, y, y)[0]

    found = checked(made(Inner, [[1.0, 2.0, 3.0, 4.0]]), SCALED)
    assert found.reason is None
    assert 0 < found.arms[0].gradient_error < 0.01


def test_a_layer_that_keeps_state_begins_every_pass_from_the_same():
    normed = made(lambda: nn.utils.spectral_norm(linear(3.0, 4.0)), [[1.0, 2.0]] * 3)
    assert checked(normed, Arm("fp32-again", FP32_IEEE)).arms[0].gradient_error == 0.0


def test_a_bias_before_a_norm_is_not_named_the_worst():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(4, 8), nn.LayerNorm(8, elementwise_affine=False)
            self.shift = nn.Parameter(torch.ones(1))  # the same for all, so the norm takes it away

        def forward(self, x):
            return self.norm(self.fc(x) + self.shift) * torch.arange(8.0)

    (fp16,) = checked(made(Normed, [[1.0, 2.0, 3.0, 5.0]]), SCALED).arms
    assert fp16.worst in ("fc.weight", "fc.bias")


def test_the_callers_random_state_stays():
    job = made(lambda: linear(1.0), [[1.0]])
    start = job.start(0, 4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check_gradients(job, start, [SCALED], CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_island_is_fp32_in_its_arm_alone():
    arm = Arm("fp16-plan", Precision("FP16, 1 module in FP32", torch.float16, log2_scale=8, keep_fp32=("",)))
    fp16, plan = checked(made(lambda: linear(1.0), [[ROUNDED]]), SCALED, arm).arms
    assert fp16.gradient_error > 0
    assert plan.gradient_error == 0.0


def test_the_arms_are_those_that_keep_fp32_weights_and_tf32_on_a_gpu_that_has_it(monkeypatch):
    arms = [
        Arm("fp32", FP32_IEEE),
        SCALED,
        UNSCALED,
        BF16,
        Arm("fp16-pure", Precision("pure", torch.float16, pure=True)),
    ]
    assert [arm.name for arm in arms_to_check(arms, CPU)] == ["fp16", "fp16-unscaled", "bf16"]
    for capability, tf32 in (((8, 0), ["tf32"]), ((7, 5), [])):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, has=capability: has)
        found = [arm.name for arm in arms_to_check(arms, torch.device("cuda"))]
        assert found == [*tf32, "fp16", "fp16-unscaled", "bf16"]


def test_as_many_batches_as_fit_but_two_at_least():
    pace = Pace({"fp32": 1.0, "fp16": 0.5}, build_seconds=2.0, first_step_seconds=1.0)
    arms = [SCALED, BF16]  # two seconds a batch, beside six for the model, its first step and the test of randomness
    assert affordable(arms, pace, 14.0) == (4, "")
    assert affordable(arms, pace, 10.5) == (2, "")
    assert affordable(arms, pace, 9.9) == (0, "not measured: it takes about 10 s, the time budget has 9.9 s for it")


def test_the_line_names_the_candidates_and_leaves_out_what_was_not_measured():
    error = GradientError("fp16", "FP16", 0.1, 0.00043, 1 - 1e-7, 0.0031, "w", 0.1)
    bad = GradientError("bf16", "BF16", reason="it raised")
    tf32 = GradientError("tf32", "TF32", 0.0, 0.0, 1.0, None, "w", 0.0)
    line = gradient_line(GradientCheck(4, (tf32, bad, error)))
    assert line == "fp16's is 0.043 % off FP32's before training, 0.31 % of what another batch changes; tf32 0 %"
    assert gradient_line(NO_GRADIENT_CHECK) is None
    assert gradient_line(GradientCheck(4, (bad,))) is None
    assert (percent(None), percent(0.5), percent(12.0)) == ("-", "50 %", "1,200 %")


def test_a_job_that_differs_from_itself_has_a_reason_and_no_figures():
    calls = iter(range(100))

    def loss(model, batch):
        return model(batch).float().sum() * (1 + 0.1 * next(calls))

    found = checked(made(lambda: linear(1.0), [[1.0]], loss), SCALED)
    assert (found.arms, found.reason) == ((), DIFFERS)
    assert found.repeat_error == pytest.approx(0.1)


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_what_python_and_numpy_draw_is_seeded_in_every_pass_too(draw):
    """A layer that is left out at random."""

    def loss(model, batch):
        return (model(batch) * (draw() < 0.5) + 2 * model(batch)).float().sum()

    found = checked(made(lambda: linear(1.0, 1.0), [[1.0, 2.0]], loss), SCALED)
    assert found.repeat_error == 0.0
    assert found.reason in (None, RANDOM)  # the other seed may draw the same side
    assert all(arm.gradient_error == 0.0 for arm in found.arms)


def test_sums_in_another_order_are_told_beside_the_figures():
    told = caption(GradientCheck(4, (), None, 4.8e-6))
    assert "FP32 again is off by 0.00048 %: sums in another order" in told
    assert "the same bits" in caption(GradientCheck(4, (), None, 0.0))


def test_buffers_that_grow_or_share_their_memory_begin_every_pass_as_they_were():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = linear(1.0, 1.0)
            self.register_buffer("table", torch.ones(1), persistent=False)
            self.register_buffer("wide", torch.ones(1).expand(2), persistent=False)
            self.register_buffer("none", None)

        def forward(self, x):
            if len(self.table) < x.shape[1]:
                self.register_buffer("table", torch.ones(x.shape[1]), persistent=False)
            self.register_buffer("more", torch.ones(1), persistent=False)
            return self.fc(x * self.table * self.wide)

    (fp16,) = checked(made(Cached, [[ROUNDED, 2.0], [1.0, -2.0]]), SCALED).arms
    assert fp16.reason is None
    assert 0 < fp16.gradient_error < 1e-3


def test_a_gradient_that_is_not_finite_in_fp32_is_not_blamed_on_an_arm():
    bad = made(lambda: linear(1.0), [[1.0]], lambda model, batch: model(batch).float().sum() * math.nan)
    assert checked(bad, SCALED) == GradientCheck(1, (), NOT_FINITE, None)
    later = made(lambda: linear(1.0), [[1.0], [math.inf]])
    assert checked(later, SCALED) == GradientCheck(2, (), NOT_FINITE, 0.0)


def test_an_arm_that_lacks_memory_has_that_as_its_reason():
    def loss(model, batch):
        y = model(batch)
        if y.dtype == torch.float16:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return y.float().sum()

    fp16, bf16 = checked(made(lambda: linear(1.0), [[1.0]], loss), SCALED, BF16).arms
    assert "out of memory" in fp16.reason
    assert bf16.reason is None


def test_a_large_error_that_tf32_shares_is_explained():
    fp16 = GradientError("fp16", "FP16", 0.0, 0.76, 0.7, 0.76, "w", 0.8)
    tf32 = GradientError("tf32", "TF32", 0.0, 0.66, 0.8, 0.66, "w", 0.7)
    assert "TF32 is about as far off. A deep network can amplify" in caption(GradientCheck(4, (tf32, fp16)))
    assert "TF32" not in caption(GradientCheck(4, (replace(tf32, gradient_error=0.01), fp16)))
    assert "amplify" in caption(GradientCheck(4, (fp16,)))
    assert "amplify" not in caption(GradientCheck(4, (replace(fp16, gradient_error=0.09),)))
