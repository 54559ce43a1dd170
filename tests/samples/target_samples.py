"""Target files in text, and how the tests of the target's room load them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpdiag.errors import MpdiagError
from mpdiag.target import Job, load_job
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session

CPU = torch.device("cpu")
HEAD = "import torch\nfrom torch import nn\n"
MODEL = "def build_model():\n    return nn.Linear(2, 1)\n"
BATCHES = "def train_batches():\n    return [torch.full((4, 2), float(i)) for i in range(3)]\n"
LOSS = "def compute_loss(model, batch):\n    return model(batch).pow(2).mean()\n"
WHOLE = HEAD + MODEL + BATCHES + LOSS

Write = Callable[..., Path]


def one_step(job: Job) -> dict[str, torch.Tensor]:
    start = job.start(0, 2)
    with open_session(job, start, FP32_IEEE, CPU) as run:
        return run.step(run.place(start.batch(0)))


def refusal(target: Any) -> MpdiagError:
    with pytest.raises(MpdiagError) as caught:
        load_job(str(target))
    return caught.value
