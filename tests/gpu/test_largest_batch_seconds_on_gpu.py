"""The seconds that the search of the largest batch has by default are enough on a real card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpdiag.measure.largest_batch import find_largest_batch
from mpdiag.settings import LARGEST_BATCH_SECONDS
from mpdiag.target import load_job
from mpdiag.training.precision import Precision

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

TARGET = """
import torch
def build_model():
    return torch.nn.Sequential(torch.nn.Linear(4096, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 4096))
def train_batches(): yield torch.randn(64, 4096), torch.randn(64, 4096)
def compute_loss(model, batch): return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
"""


def test_one_arm_is_searched_and_timed_within_its_seconds(tmp_path: Path) -> None:
    path = tmp_path / "wide.py"
    path.write_text(TARGET)
    fp16 = Precision("FP16", torch.float16, log2_scale=10)
    found = find_largest_batch(
        load_job(str(path)), fp16, 0, torch.device("cuda", 0), LARGEST_BATCH_SECONDS,
        memory_limit_bytes=4 * 2**30, arm="fp16",
    )  # fmt: skip
    assert found.reason is found.speed_reason is None
    assert found.batch is not None
    assert found.samples_per_second is not None
    assert not any(note.startswith("the search ended early") for note in found.notes)
