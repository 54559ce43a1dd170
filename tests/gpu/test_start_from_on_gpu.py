"""Checkpoints that were saved on a GPU, and the examples in their large size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mpdiag.target import load_job
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.training.session import open_session, total

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda")
PURE = Precision("pure", torch.float16, pure=True)
FP16 = Precision("FP16", torch.float16, log2_scale=8)
NEW = ("resnet_images", "lstm_lm", "dcgan", "ssd_detector", "bert_mlm", "gpt_code", "t5_code")

TARGET = """
import torch
from torch import nn

def build_model():
    return nn.Linear(8, 1)

def train_batches():
    return [torch.ones(4, 8)]

def compute_loss(model, batch):
    return model(batch).pow(2).mean()

def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=0.125, fused=model.weight.is_cuda)
"""


def test_a_run_goes_on_where_a_checkpoint_from_the_gpu_ends(tmp_path):
    (tmp_path / "job.py").write_text(TARGET)
    job = load_job(str(tmp_path / "job.py"))
    start = job.start(0, 1)
    losses = []
    with open_session(job, start, FP32_IEEE, CUDA) as run:
        for step in range(6):
            if step == 3:
                (optimizer,) = run.optimizers.values()
                content = {"model": run.model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(content, tmp_path / "late.pt")
            losses.append(total(run.step(run.place(start.batch(step)))))
    again = load_job(str(tmp_path / "job.py"), tmp_path / "late.pt")
    for _ in range(2):  # the second run must not start from what the first left
        start = again.start(0, 1)
        with open_session(again, start, FP32_IEEE, CUDA) as run:
            assert [total(run.step(run.place(start.batch(step)))) for step in range(3)] == losses[3:]
    with open_session(again, again.start(0, 1), PURE, CUDA) as run:
        (optimizer,) = run.optimizers.values()
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        assert {(m.dtype, m.device.type) for m in moments} == {(torch.float16, "cuda")}
        run.step(run.place(start.batch(0)))


@pytest.mark.parametrize("precision", [FP32_IEEE, FP16, PURE], ids=lambda precision: precision.name)
@pytest.mark.parametrize("name", NEW)
def test_a_large_example_steps_and_is_measured(name, precision, monkeypatch):
    monkeypatch.setenv("EXAMPLE_SIZE", "large")
    job = load_job(str(ROOT / "examples" / f"{name}.py"))
    start = job.start(0, 2)
    with open_session(job, start, precision, CUDA) as run:
        losses = [total(run.step(run.place(start.batch(step)))) for step in range(2)]
        metric = run.evaluate()
    assert metric
    if not precision.pure:  # without master weights Adam may break at once: its second moments underflow
        assert all(math.isfinite(value) for value in [*losses, *metric.values()])
