"""A verification from start to record: out of memory halves the batch for every arm, and what was cut is said once."""

import re

import pytest
import torch

from mpdiag.advice import advise
from mpdiag.api import ScanOptions, scan
from mpdiag.errors import UserCodeError
from mpdiag.report.html import render
from mpdiag.target import load_job
from mpdiag.verify.run import VerificationRun

MODEL = """
import torch
ROOM = {room}
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(4)]
def compute_loss(model, batch):
    if len(batch[0]) > ROOM:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


def run_with(room, tmp_path):
    """A verification of a job whose batches of 16 are too large, advised as if they were not."""
    path = tmp_path / "model.py"
    path.write_text(MODEL.format(room=16))
    advice = advise(scan(str(path), ScanOptions(steps=2, verify=False, device="cpu")).capture)
    path.write_text(MODEL.format(room=room))
    made = VerificationRun(load_job(str(path)), advice, torch.device("cpu"))
    made.run(0, 5, 2, 60.0, lambda line: None)
    return made


@pytest.mark.parametrize(("room", "share"), [(8, 2), (4, 4), (1, 16)])
def test_out_of_memory_halves_the_batch_for_every_arm_and_says_so_once(room, share, tmp_path):
    found = run_with(room, tmp_path).record()
    told = [line for line in found.cut if "of the batch" in line]
    assert len(told) == 1
    assert told[0].startswith(f"every arm trains on 1/{share} of the batch")
    assert "out of memory" in told[0]
    assert {t.seed for t in found.trials if t.arm == "fp32"} == {0, 1}
    assert all(t.error is None and t.steps == 5 for t in found.trials)
    assert len(found.cut) == len(set(found.cut))


EVALUATED = """
def evaluate(model):
    y = model(torch.ones(2, 4))
    if y.dtype in ({types}):
        raise RuntimeError("no kernel for my metric")
    return {{"score": float(y.mean())}}
"""


@pytest.mark.parametrize(
    ("types", "verdict", "severity"),
    [("torch.float16,", "go-with-changes", "warning"), ("torch.bfloat16,", "go", "info"),
     ("torch.float16, torch.bfloat16", "go-with-changes", "warning")],
    ids=["fp16", "bf16", "both"],
)  # fmt: skip
def test_an_evaluate_that_raises_in_16_bits_is_a_fault_of_evaluate_and_not_of_the_training(
    types, verdict, severity, tmp_path
):
    path = tmp_path / "model.py"
    path.write_text(f"{MODEL.format(room=16)}{EVALUATED.format(types=types)}MARGIN = {{'loss': 0.5}}\n")
    seen = scan(str(path), ScanOptions(steps=2, verify_steps=5, seeds=2, device="cpu"))
    run = seen.verification
    assert (run.verdict, run.train_with) == (verdict, "fp16")
    assert "falls behind" not in run.reason + seen.advice.format_choice.reason
    (found,) = [f for f in seen.advice.findings if f.code == "MP609"]
    assert found.severity == severity
    assert re.search(r"no kernel for my metric, at \S*model.py:14$", found.message)
    (format_of,) = [o for o in seen.advice.format_choice.options if o.format == ("BF16" if "b" in types else "FP16")]
    assert "keeps up with FP32 in its loss, evaluate() gave no metric" in format_of.why
    assert "falls behind" not in render(seen)


def test_one_step_is_no_go(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL.format(room=16) + "MARGIN = {'loss': 0.5}\n")
    seen = scan(str(path), ScanOptions(steps=2, verify_steps=1, seeds=2, device="cpu")).verification
    assert (seen.verdict, seen.train_with) == ("inconclusive", None)
    assert "one step shows no training" in seen.reason
    assert " 1 steps" not in seen.reason


ZERO_HEAD = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 50, bias=False)
        nn.init.zeros_(self.head.weight)
    def forward(self, x): return self.head(self.a(x).relu())
def build_model(): return Model()
def train_batches(): return [(torch.randn(16, 8), torch.randint(0, 50, (16,))) for _ in range(20)]
def compute_loss(model, batch): return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])
def build_optimizer(model):
    made, steps = torch.optim.SGD(model.parameters(), lr=1e-6), []
    def warm(optimizer, args, kwargs):
        steps.append(1)
        for group in optimizer.param_groups: group["lr"] = min(1.0, 1e-6 * 4 ** len(steps))
    made.register_step_pre_hook(warm)
    return made
"""


def test_seeds_of_a_head_of_zeros_in_a_warm_up_count_each(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(ZERO_HEAD)
    run = scan(str(path), ScanOptions(steps=2, verify_steps=20, seeds=3, device="cpu")).verification
    losses = [t.losses for t in run.trials if t.arm == "fp32"]
    assert len({round(x, 4) for each in losses for x in each[:3]}) == 1  # ln 50, whatever the seed
    assert {c.seeds for c in run.comparisons if c.quantity == "loss"} == {3}


def test_a_metric_too_large_for_a_spread_leaves_the_verification_standing(tmp_path):
    path = tmp_path / "model.py"
    vast = "    return {'energy': -1.5e308 if model(torch.ones(2, 4)).dtype == torch.float16 else 1.5e308}"
    path.write_text(f"{MODEL.format(room=16)}\ndef evaluate(model):\n{vast}\n")
    run = scan(str(path), ScanOptions(steps=2, verify_steps=5, seeds=2, device="cpu")).verification
    assert {t.arm for t in run.trials} >= {"fp32", "fp16", "bf16"}
    assert {c.verdict for c in run.comparisons if c.quantity == "energy"} == {"inconclusive"}


def test_a_batch_that_fits_is_left_whole(tmp_path):
    assert not any("of the batch" in line for line in run_with(16, tmp_path).record().cut)


def test_a_single_sample_that_does_not_fit_is_the_jobs_own_error(tmp_path):
    with pytest.raises(UserCodeError) as raised:
        run_with(0, tmp_path)
    assert raised.value.slug == "out-of-memory"


def test_out_of_memory_in_the_middle_of_an_arm_begins_all_arms_again(tmp_path, monkeypatch):
    from mpdiag.verify import run as room

    real, calls = room.train_arm, []

    def once(job, arm, start, steps, device):
        calls.append((arm.name, len(start.batches[0][0])))
        if arm.name == "bf16" and len(start.batches[0][0]) == 16:
            raise UserCodeError("out-of-memory", "OutOfMemoryError: CUDA out of memory", "", "")
        return real(job, arm, start, steps, device)

    monkeypatch.setattr(room, "train_arm", once)
    found = run_with(16, tmp_path).record()
    assert {size for _, size in calls[calls.index(("bf16", 16)) + 1 :]} == {8}
    assert len([t for t in found.trials if t.arm == "fp32"]) == 2


@pytest.mark.parametrize("error", [RuntimeError("sizes differ"), torch.cuda.OutOfMemoryError("CUDA out of memory")])
def test_a_fault_in_the_check_of_gradients_ends_nothing_and_halves_nothing(error, tmp_path, monkeypatch):
    def failing(*given):
        raise error

    monkeypatch.setattr("mpdiag.verify.run.check_gradients", failing)
    found = run_with(16, tmp_path).record()
    assert found.gradients.reason == f"not measured: {error}"
    assert found.trials
    assert not any("of the batch" in line for line in found.cut)


def test_batches_that_the_runs_repeat_are_told_once(tmp_path):
    told = [note for note in run_with(16, tmp_path).job.notes if note.startswith("the target gives")]
    assert told == ["the target gives 4 batches, repeated in the same order"]
