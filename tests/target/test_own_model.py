"""A target that makes its model once: every run has a model of its own all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpdiag.errors import UsageError
from mpdiag.target import Job, load_job
from mpdiag.target.own_model import INSTANCE, ONE_MODEL, SHARED_PARTS
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.training.session import open_session, total
from target_samples import BATCHES, CPU, HEAD, LOSS, WHOLE

PURE = Precision("pure", torch.float16, pure=True)
SGD = "def build_optimizer(model):\n    return torch.optim.SGD(model.parameters(), lr=0.125)\n"
REST = BATCHES + LOSS + SGD
ONCE = HEAD + "M = nn.Linear(2, 1)\ndef build_model():\n    return M\n" + REST


def trained(job: Job, precision: Precision = FP32_IEEE, seed: int = 0) -> tuple[list[float], torch.dtype]:
    """The losses of three steps, and what the weights are in."""
    start = job.start(seed, 3)
    with open_session(job, start, precision, CPU) as run:
        losses = [total(run.step(run.place(start.batch(i)))) for i in range(3)]
        return losses, next(run.model.parameters()).dtype


@pytest.mark.parametrize(
    "model",
    [
        "M = nn.Linear(2, 1)\ndef build_model():\n    return M\n",
        "M = nn.Linear(2, 4)\ndef build_model():\n    return nn.Sequential(M, nn.Linear(4, 1))\n",
        "W = nn.Parameter(torch.ones(1, 2))\ndef build_model():\n"
        "    m = nn.Linear(2, 1)\n    m.weight = W\n    return m\n",
        "import functools\n@functools.cache\ndef build_model():\n    return nn.Linear(2, 1)\n",
    ],
    ids=["the model", "a part", "a parameter", "a cached function"],
)
def test_a_run_in_pure_fp16_leaves_the_next_one_in_fp32_where_both_began(write, model):
    job = load_job(str(write(HEAD + model + REST)))
    before = trained(job)
    assert before[1] is torch.float32
    assert trained(job, PURE)[1] is torch.float16
    assert trained(job) == before


def test_a_later_seed_starts_from_the_weights_as_they_were_made_and_not_as_trained(write):
    job = load_job(str(write(ONCE)))
    first = job.start(0, 3).weights
    trained(job)
    later = job.start(1, 3).weights
    assert all(torch.equal(first[name], later[name]) for name in first)


def test_two_runs_of_one_model_can_be_open_at_once(write):
    job = load_job(str(write(ONCE)))
    start = job.start(0, 3)
    with open_session(job, start, FP32_IEEE, CPU) as one, open_session(job, start, PURE, CPU) as other:
        assert one.model.weight is not other.model.weight
        assert (one.model.weight.dtype, other.model.weight.dtype) == (torch.float32, torch.float16)


@pytest.mark.parametrize(
    ("model", "note"),
    [
        ("M = nn.Linear(2, 1)\ndef build_model():\n    return M\n", ONE_MODEL),
        ("M = nn.Linear(2, 4)\ndef build_model():\n    return nn.Sequential(M, nn.Linear(4, 1))\n", SHARED_PARTS),
        ("model = nn.Linear(2, 1)\n", INSTANCE),
        ("def build_model():\n    return nn.Linear(2, 1)\n", None),
    ],
    ids=["the model", "a part", "an instance", "a new one"],
)
def test_the_report_says_that_runs_train_copies(write, model, note):
    job = load_job(str(write(HEAD + model + REST)))
    trained(job)
    trained(job, seed=1)
    assert job.notes == (() if note is None else (note,))


def test_a_new_model_of_each_call_is_not_copied(write, monkeypatch):
    job = load_job(str(write(WHOLE)))
    monkeypatch.setattr("copy.deepcopy", pytest.fail)
    trained(job)
    trained(job, seed=1)


def test_weights_that_the_function_draws_anew_differ_from_seed_to_seed(write):
    text = ONCE.replace("    return M\n", "    M.reset_parameters()\n    return M\n")
    job = load_job(str(write(text)))
    trained(job)
    assert not torch.equal(job.start(0, 3).weights["weight"], job.start(1, 3).weights["weight"])


@pytest.mark.parametrize("made", ["def build_model():\n    return M\n", "model = M\n"], ids=["function", "instance"])
def test_a_model_that_is_made_once_and_cannot_be_copied_is_refused(write, made):
    text = HEAD + "import threading\nM = nn.Linear(2, 1)\nM.lock = threading.Lock()\n" + made + REST
    job = load_job(str(write(text)))
    with pytest.raises(UsageError) as caught:
        trained(job)
    assert caught.value.slug == "model-not-copied"
    assert "cannot pickle '_thread.lock' object" in caught.value.message
    assert "build the model inside build_model" in caught.value.hint


def test_a_loss_of_the_model_that_was_made_elsewhere_is_refused_as_it_trains_nothing(write):
    text = ONCE.replace("model(batch)", "M(batch)")
    with pytest.raises(UsageError, match="none of the model's parameters a gradient") as caught:
        trained(load_job(str(write(text))))
    assert caught.value.slug == "loss-of-another-model"


def test_what_else_an_optimizer_trains_may_be_all_that_a_step_trains(write):
    text = HEAD + "S = nn.Parameter(torch.ones(()))\ndef build_model():\n    return nn.Linear(2, 1)\n" + BATCHES
    text += "def compute_loss(model, batch):\n    return S * batch.sum()\n"
    text += "def build_optimizer(model):\n    return torch.optim.SGD([*model.parameters(), S], lr=0.1)\n"
    assert len(trained(load_job(str(write(text))))[0]) == 3


def test_a_checkpoint_is_where_every_run_of_a_model_made_once_starts(write, tmp_path):
    content: dict[str, Any] = {"weight": torch.full((1, 2), 4.0), "bias": torch.zeros(1)}
    torch.save(content, tmp_path / "late.pt")
    job = load_job(str(write(ONCE)), tmp_path / "late.pt")
    assert trained(job) == trained(job)
    assert trained(job, seed=1)[0] == trained(job)[0]
