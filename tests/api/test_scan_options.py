"""What options change, and what a scan says on its way."""

from __future__ import annotations

import dataclasses
import sys

import pytest

import mpdiag
from api_samples import CAPTURE_ONLY, JOB, SMALL, TARGETS, seen, trained
from mpdiag import Diagnosis


def test_the_same_seed_gives_the_same_bits(write):
    path = write(JOB)
    one, other = mpdiag.scan(path, SMALL), mpdiag.scan(path, SMALL)
    assert seen(one) == seen(other)
    assert one.advice == other.advice
    assert trained(one) == trained(other)


def test_another_seed_gives_another_run(write):
    path = write(JOB)
    one, other = (mpdiag.scan(path, dataclasses.replace(CAPTURE_ONLY, seed=seed)) for seed in (0, 1))
    assert one.capture is not None
    assert other.capture is not None
    assert one.capture.losses != other.capture.losses
    assert seen(one)[0] != seen(other)[0]
    assert other.capture.seed == 1


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_as_many_steps_are_observed_as_were_asked_for(write, steps):
    capture = mpdiag.scan(write(JOB), dataclasses.replace(CAPTURE_ONLY, steps=steps)).capture
    assert capture is not None
    assert (capture.steps, len(capture.losses)) == (steps, steps)
    assert {t.steps for t in capture.tables} == {steps}


def test_the_capture_trains_as_the_fp32_arm_does(write):
    diagnosis = mpdiag.scan(write(JOB), SMALL)
    assert diagnosis.capture is not None
    assert trained(diagnosis)["fp32", 0][:3] == diagnosis.capture.losses


def test_the_capture_does_not_depend_on_whether_it_is_verified(write):
    path = write(JOB)
    assert seen(mpdiag.scan(path, SMALL)) == seen(mpdiag.scan(path, CAPTURE_ONLY))


def test_several_seeds_are_paired_and_all_different(write):
    diagnosis = mpdiag.scan(write(JOB), dataclasses.replace(SMALL, seed=5, seeds=3, time_budget_seconds=600))
    losses = trained(diagnosis)
    assert {seed for _, seed in losses} == {5, 6, 7}
    assert len({losses["fp32", seed] for seed in (5, 6, 7)}) == 3
    assert diagnosis.verification is not None
    loss = next(c for c in diagnosis.verification.comparisons if (c.candidate, c.quantity) == ("fp16", "loss"))
    assert loss.seeds == 3
    assert loss.interval is not None
    assert loss.interval[0] <= loss.interval[1]


def test_a_seed_trains_the_same_wherever_it_stands_among_others(write):
    path = write(JOB)
    several = trained(mpdiag.scan(path, dataclasses.replace(SMALL, seed=0, seeds=2, time_budget_seconds=600)))
    alone = trained(mpdiag.scan(path, dataclasses.replace(SMALL, seed=1)))
    assert several["fp32", 1] == alone["fp32", 1]


def test_a_small_time_budget_is_kept_and_what_is_cut_is_named(write):
    slow = JOB.replace("    return model(batch)", "    import time\n    time.sleep(0.005)\n    return model(batch)")
    options = dataclasses.replace(SMALL, verify_steps=1000, seeds=5, time_budget_seconds=0.5)
    diagnosis = mpdiag.scan(write(slow), options)
    assert diagnosis.verification is not None
    assert diagnosis.verification.cut
    assert any("time budget" in sentence for sentence in diagnosis.verification.cut)
    assert diagnosis.elapsed_seconds["verify"] < 5


def test_include_and_exclude_are_honoured(write):
    options = dataclasses.replace(CAPTURE_ONLY, include=("0*", "2*"), exclude=("*.bias",))
    capture = mpdiag.scan(write(JOB), options).capture
    assert capture is not None
    assert {t.name for t in capture.tables} == {"0", "2", "0.weight", "2.weight"}


def test_a_scan_leaves_the_callers_settings_as_they_were(write):
    import torch

    torch.manual_seed(3)
    state = torch.get_rng_state()
    path = list(sys.path)
    grad, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    mpdiag.scan(write(JOB), SMALL)
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()) == (grad, dtype, threads)
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    assert len(sys.path) <= len(path) + 1
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state was changed"


def test_several_optimizers_are_each_stepped():
    diagnosis = mpdiag.scan(str(TARGETS / "gan.py"), dataclasses.replace(SMALL, verify_steps=3))
    assert diagnosis.target is not None
    assert diagnosis.target.optimizer.count("Adam(lr=0.0002)") == 2
    assert diagnosis.capture is not None
    assert diagnosis.capture.unchanged is True
    moved = {t.name.split(".")[0] for t in diagnosis.capture.tables if t.kind == "weight_update"}
    assert moved == {"generator", "discriminator"}
    assert all(len(losses) == 3 for (arm, _), losses in trained(diagnosis).items() if arm in ("fp32", "fp16", "bf16"))


# what is said on the way


def test_a_checkpoint_comes_after_each_stage_and_only_grows(write):
    kept: list[Diagnosis] = []
    last = mpdiag.scan(write(JOB), SMALL, checkpoint=kept.append)
    parts = [
        tuple(getattr(d, part) is not None for part in ("target", "capture", "advice", "verification")) for d in kept
    ]
    assert parts == [
        (True, False, False, False),
        (True, True, False, False),
        (True, True, True, False),
        (True, True, True, True),
    ]
    assert kept[-1].verification == last.verification


def test_each_stage_is_reported_in_one_line(write):
    lines: list[str] = []
    mpdiag.scan(write(JOB), SMALL, report=lines.append)
    assert lines[0].startswith("load ")
    assert any("capture 3 FP32 steps" in line for line in lines)
    assert any(line.startswith("verify fp16") for line in lines)
    assert not any("\n" in line for line in lines)


def test_the_command_is_kept_and_has_a_default(write):
    path = write(JOB)
    told = "device='cpu', verify=False, verify_steps=5, seeds=1"
    assert mpdiag.scan(path, CAPTURE_ONLY, steps=2).command == f"mpdiag.scan({path!r}, steps=2, {told})"
    assert mpdiag.scan(path, CAPTURE_ONLY, command="mine").command == "mine"
