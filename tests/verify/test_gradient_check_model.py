"""The check of first gradients leaves the model as it was: the job may build one and the same object for every run."""

import pytest
import torch
from torch import nn

from mpdiag.errors import UserCodeError
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import Precision
from mpdiag.verify.arms import Arm
from mpdiag.verify.gradient_check import check_gradients

CPU = torch.device("cpu")
FP16 = Arm("fp16", Precision("FP16 autocast", torch.float16, log2_scale=8))


class Dropping(nn.Module):
    """Dropout of every kind, one of them frozen by its owner, and a buffer that counts passes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, num_layers=2, dropout=0.5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.25)
        self.drop, self.frozen = nn.Dropout(0.1), nn.Dropout2d(0.1)
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        y, _ = self.rnn(x[None])
        return self.drop(self.attention(y, y, y)[0])


def job_of(model: nn.Module, loss) -> Job:
    """A job whose build_model() gives the same model every time."""

    def losses(model, batch):
        yield ONLY, loss(model, batch)

    return Job(
        name="tiny", source="tiny.py", build_model=lambda: model, train_batches=lambda: [torch.ones(1, 4)] * 2,
        losses=losses, build_optimizers=lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=1.0)},
    )  # fmt: skip


def state(model: Dropping) -> tuple[object, ...]:
    shares = (model.rnn.dropout, model.attention.dropout, model.drop.p)
    return (*shares, *(module.training for module in model.modules()), model.passes.item())


def checked(job: Job):
    return check_gradients(job, job.start(0, 2), [FP16], CPU)


def test_a_model_that_is_built_only_once_drops_afterwards_as_before():
    model, seen = Dropping().train(), []

    def loss(model, batch):
        seen.append((model.rnn.dropout, model.attention.dropout, model.drop.training))
        return model(batch).float().sum()

    before, buffer = state(model), model.passes
    found = checked(job_of(model, loss))
    assert found.reason is None
    assert set(seen) == {(0.0, 0.0, False)}
    assert state(model) == before
    assert before[:3] == (0.5, 0.25, 0.1)
    assert model.passes is buffer


def test_so_it_does_where_the_loss_raises():
    model = Dropping().train()
    before = state(model)

    def loss(model, batch):
        model(batch)
        raise RuntimeError("never")

    with pytest.raises(UserCodeError):
        checked(job_of(model, loss))
    assert state(model) == before
