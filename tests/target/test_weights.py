"""The numbers of a model by name: what a start holds of it, and what the next model is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpdiag.errors import UsageError
from mpdiag.target import load_job
from mpdiag.target.weights import put_weights, weights_of
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session
from target_samples import BATCHES, CPU, HEAD, LOSS


class Buffers(nn.Module):
    """One parameter, and buffers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1, bias=False)
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)
        self.register_buffer("wide", torch.zeros(1).expand(3), persistent=False)
        self.register_buffer("rows", torch.eye(2).to_sparse_csr())
        self.register_buffer("late", None)


def test_parameters_and_all_buffers_are_copied_by_name():
    model = Buffers()
    found = weights_of(model)
    assert list(found) == ["inner.weight", "kept", "unsaved", "wide", "rows"]
    model.unsaved.add_(1)
    assert found["unsaved"].tolist() == [0.0, 0.0]


def test_another_model_takes_them_into_the_tensors_it_has():
    one, other = Buffers(), Buffers()
    for tensor in (one.inner.weight.data, one.kept, one.unsaved, one.rows.values()):
        tensor.fill_(7.0)
    own = other.unsaved
    put_weights(other, weights_of(one), "job.py")
    assert other.inner.weight.item() == 7.0
    assert other.unsaved is own
    assert (other.kept.tolist(), other.unsaved.tolist()) == ([7.0, 7.0], [7.0, 7.0])
    assert other.rows.to_dense().tolist() == [[7.0, 0.0], [0.0, 7.0]]


def test_a_buffer_that_cannot_be_written_to_is_left_where_it_is_the_same_and_replaced_where_not():
    one, other = Buffers(), Buffers()
    put_weights(other, weights_of(one), "job.py")
    assert other.wide.stride() == (0,)
    one.wide = torch.ones(1).expand(3)
    with torch.inference_mode():
        other.kept = torch.ones(2)
    put_weights(other, weights_of(one), "job.py")
    assert (other.wide.tolist(), other.kept.tolist()) == ([1.0] * 3, [0.0] * 2)


def test_a_buffer_takes_another_shape_and_one_that_was_none():
    one, other = Buffers(), Buffers()
    one.kept, one.late = torch.ones(5), torch.ones(3)
    put_weights(other, weights_of(one), "job.py")
    assert (other.kept.shape, other.late.tolist()) == ((5,), [1.0] * 3)


def test_what_only_one_model_has_is_left_alone():
    model = nn.Linear(1, 1)
    before = model.bias.item()
    put_weights(model, {"weight": torch.tensor([[2.0]]), "gone.mean": torch.ones(1), "other": torch.ones(1)}, "job.py")
    assert (model.weight.item(), model.bias.item()) == (2.0, before)


def test_a_parameter_of_another_shape_is_refused_also_where_it_could_be_broadcast():
    with pytest.raises(UsageError, match=r"weight is \(3, 1\), and in the model built before this one it was \(1, 1\)"):
        put_weights(nn.Linear(1, 3), {"weight": torch.ones(1, 1)}, "job.py")


def test_tied_parameters_stay_tied_and_are_held_once():
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        return model

    one, other = tied(), tied()
    assert list(weights_of(one)) == ["0.weight"]
    put_weights(other, weights_of(one), "job.py")
    assert other[1].weight is other[0].weight
    assert torch.equal(other[1].weight, one[0].weight)


# in a target

OWN_STATE_DICT = """
class Net(nn.Linear):
    def state_dict(self):
        return {"net": super().state_dict()}
    def load_state_dict(self, content):
        return super().load_state_dict(content["net"])
def build_model():
    return Net(2, 1)
"""
NOISE = """
import numpy as np
class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 1)
        self.register_buffer("noise", torch.tensor(np.random.default_rng().normal(size=2)), persistent=False)
def build_model():
    return Net()
"""


@pytest.mark.parametrize("model", [OWN_STATE_DICT, NOISE], ids=["its own state_dict", "unseeded noise"])
def test_every_run_begins_with_the_numbers_of_the_first(write, model):
    job = load_job(str(write(HEAD + model + BATCHES + LOSS)))
    start = job.start(0, 1)
    for _ in range(2):
        with open_session(job, start, FP32_IEEE, CPU) as run:
            assert all(torch.equal(value, start.weights[name]) for name, value in weights_of(run.model).items())
            run.step(run.place(start.batch(0)))


def test_a_checkpoint_by_torchs_names_fits_a_model_that_writes_its_own(write, tmp_path):
    torch.save({"weight": torch.full((1, 2), 4.0), "bias": torch.zeros(1)}, tmp_path / "late.pt")
    job = load_job(str(write(HEAD + OWN_STATE_DICT + BATCHES + LOSS)), tmp_path / "late.pt")
    assert job.start(0, 1).weights["weight"].tolist() == [[4.0, 4.0]]
