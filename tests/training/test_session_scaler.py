"""The training loop scales its loss as GradScaler does, and takes or skips its steps accordingly."""

from __future__ import annotations

import math

import torch

from mpdiag.training.precision import FP32_IEEE, Precision
from session_samples import FP16_SCALED, FP16_UNSCALED, job, one_weight, running, scale, step, weight

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
