"""The user's own margin, from the target file to the comparison."""

from __future__ import annotations

import math

import pytest

from mpdiag.errors import UsageError
from mpdiag.target.load import load_job
from mpdiag.target.metrics import margins_of

TARGET = """
import torch
def build_model(): return torch.nn.Linear(1, 1)
def train_batches(): return [torch.ones(1, 1)]
def compute_loss(model, batch): return model(batch).mean()
"""


def test_a_number_is_for_the_metric():
    assert margins_of({"MARGIN": 0.5, "evaluate": lambda model: 1.0}, "model.py") == {"metric": 0.5}


def test_without_a_metric_a_number_is_for_the_loss():
    assert margins_of({"MARGIN": 1}, "model.py") == {"loss": 1.0}


def test_several_are_by_quantity():
    assert margins_of({"MARGIN": {"loss": 0.1, "f1": 2}}, "model.py") == {"loss": 0.1, "f1": 2.0}


def test_without_one_the_rule_holds():
    assert margins_of({}, "model.py") == {}


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "0.5", True, {"loss": 0}, {"loss": None}])
def test_what_is_no_number_above_zero_is_refused(value):
    with pytest.raises(UsageError, match="MARGIN") as refused:
        margins_of({"MARGIN": value}, "model.py")
    assert refused.value.slug == "target-margin"


def test_it_is_read_from_the_target_file(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(TARGET + "MARGIN = 0.25\n")
    assert load_job(str(path)).margins == {"loss": 0.25}
