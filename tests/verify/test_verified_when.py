"""A scan that is finished later says when, and keeps when it was begun."""

from dataclasses import replace
from datetime import datetime

import pytest

import mpdiag
from mpdiag.finish import verify_saved

MODEL = """
import torch
def build_model():
    return torch.nn.Linear(8, 1)
def train_batches():
    return [(torch.randn(16, 8), torch.randn(16, 1)) for _ in range(4)]
def compute_loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return "model.py"


def test_finishing_notes_when_beside_when_the_scan_began(target):
    began = "2001-01-01T00:00:00+00:00"
    saved = replace(mpdiag.scan(target, device="cpu", steps=2, verify=False), created=began)
    found = verify_saved(saved, device="cpu", verify_steps=2, seeds=1)
    assert found.created == began
    assert found.verified is not None
    assert datetime.fromisoformat(found.verified) > datetime.fromisoformat(began)


def test_a_scan_that_verifies_by_itself_has_one_date(target):
    assert mpdiag.scan(target, device="cpu", steps=2, verify_steps=2, seeds=1).verified is None
