"""A verdict heeds what no loss tells: steps that were never made, a scale that collapsed, a run that was stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from arm_samples import SCALE, one, trial
from arm_samples import judged as bare
from mpdiag.api import ScanOptions, scan
from mpdiag.diagnosis import Advice, Trial, Verification
from mpdiag.plan import IslandPlan
from mpdiag.target import load_job
from mpdiag.verify.compare import compare_arms
from mpdiag.verify.run import VerificationRun
from mpdiag.verify.verdict import decide, judged, train_with

FALLING = tuple(float(10 - step) for step in range(60))  # log2 of a scale that is halved at every step


def runs(**of_fp16: object) -> list[Trial]:
    """Three seeds of FP32, FP16 and BF16 with a flat loss, FP16 with these fields."""
    arms = {"fp32": {}, "fp16": of_fp16, "bf16": {}}
    return [
        replace(trial(arm, seed, [1 + seed / 100] * 60), **fields) for seed in range(3) for arm, fields in arms.items()
    ]


def verified(trials: list[Trial]) -> Verification:
    found = Verification(tuple(trials), compare_arms(trials, True), "inconclusive", "")
    return judged(found, Advice("FP16", SCALE, ()))


def test_an_arm_that_makes_no_step_is_worse_though_its_loss_is_the_same():
    trials = runs(skipped_steps=60)
    assert (one(trials).verdict, one(trials).reason) == (
        "worse",
        "no step was made: the GradScaler skipped all 60 with seed 0",
    )
    found = verified(trials)
    assert (found.verdict, found.train_with) == ("go-with-changes", "bf16")
    assert "no step was made" in found.reason


def test_an_arm_that_makes_one_step_is_judged_by_its_loss():
    assert one(runs(skipped_steps=59)).verdict == "equivalent"


def test_a_scale_that_collapsed_has_to_be_mended_before_a_go():
    found = verified(runs(skipped_steps=30, loss_scales_log2=FALLING))
    assert found.verdict == "go-with-changes"
    assert "but MP60" in found.reason
    assert "has to be mended first" in found.reason
    assert verified(runs(skipped_steps=0, loss_scales_log2=(10.0,) * 60)).verdict == "go"


@pytest.mark.parametrize(("half_share", "arm"), [(0.49, "bf16"), (0.5, "fp16-plan"), (None, "fp16-plan")])
def test_a_plan_that_leaves_little_in_fp16_comes_after_a_bf16_that_keeps_up(half_share, arm):
    plan = IslandPlan(
        ("0",), True, True, 0, "none", None, 1, 0.0, False, half_share=half_share, modules=("Linear 24->64",)
    )  # fmt: skip
    advice = Advice("FP16", SCALE, (), plan=plan)
    found = [bare("fp16", "worse"), bare("fp16-plan", "equivalent"), bare("bf16", "equivalent")]
    verdict, reason = decide(advice, runs(), found)
    assert (verdict, train_with(found, advice)) == ("go-with-changes", arm)
    assert ("train in BF16" in reason) == (arm == "bf16")
    assert arm == "bf16" or 'keep "0" (Linear 24->64) in FP32' in reason


STUCK = """
import torch
class Infinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): return g if g.dtype == torch.float32 else g + float("inf")
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)
    def forward(self, x): return self.b(Infinite.apply(torch.tanh(self.a(x))))
def build_model(): return Model()
def train_batches(): return [(torch.randn(16, 8), torch.randn(16, 1)) for _ in range(4)]
def compute_loss(model, batch): return ((model(batch[0]).float() - batch[1]) ** 2).mean() * 1e-4
def build_optimizer(model): return torch.optim.SGD(model.parameters(), lr=1e-6)
"""


def test_a_job_whose_fp16_gradients_are_never_finite_gets_no_go(tmp_path):
    path = tmp_path / "stuck.py"
    path.write_text(STUCK)
    found = scan(str(path), ScanOptions(steps=2, verify_steps=12, seeds=2, device="cpu")).verification
    assert all(t.skipped_steps == t.steps for t in found.trials if t.arm == "fp16")
    assert found.verdict != "go"
    assert found.train_with != "fp16"


@pytest.mark.parametrize("trained", [True, False])
def test_a_verification_that_is_stopped_is_judged_where_all_its_runs_had_ended(trained, tmp_path):
    path = tmp_path / "model.py"
    path.write_text(STUCK.replace('float("inf")', "0"))
    job = load_job(str(path))
    made = VerificationRun(job, Advice("FP16", SCALE, ()), torch.device("cpu"), trials=runs(), trained=trained)
    found = made.record(interrupted=True)
    if trained:
        assert (found.verdict, found.train_with) == ("go", "fp16")
    else:
        assert (found.verdict, found.train_with) == ("inconclusive", None)
        assert found.reason == "the verification was stopped before its end"
