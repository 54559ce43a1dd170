"""torch.func and sparse batches under the CUDA kernels, and a model that is made once on the card."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from mpdiag.capture.autocast_types import observe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.capture.selftest import run_selftest
from mpdiag.diagnosis import SelfTest, TensorKind
from mpdiag.drift import observed_parts
from mpdiag.target import Job, load_job
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.training.session import open_session, total

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
PURE = Precision("pure", torch.float16, pure=True)

HEAD = """
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

def build_model():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

def train_batches():
    return [torch.rand(16, 4)]

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.25)
"""
LOSSES = {
    "grad": """
def compute_loss(model, x):
    p = dict(model.named_parameters())
    loss = lambda p: functional_call(model, p, (x,)).square().mean()
    return loss({k: p[k] - 0.125 * g for k, g in grad(loss)(p).items()})
""",
    "jvp": """
def compute_loss(model, x):
    return jvp(model, (x,), (torch.ones_like(x),))[1].square().mean()
""",
    "vmap": """
def compute_loss(model, x):
    return vmap(jacrev(model))(x).square().mean()
""",
    "many at once": """
def compute_loss(model, x):
    x = x.clone().requires_grad_(True)
    y = model(x)
    g, = torch.autograd.grad(y, x, torch.ones(2, *y.shape, device=y.device, dtype=y.dtype), is_grads_batched=True,
                             create_graph=True)
    return g.square().mean() + y.square().mean()
""",
}


def loaded(folder: Path, text: str) -> Job:
    (folder / "job.py").write_text(textwrap.dedent(text))
    return load_job(str(folder / "job.py"))


@pytest.mark.parametrize("name", LOSSES)
def test_inside_a_transform_nothing_is_counted_and_nothing_fails(tmp_path, name):
    job = loaded(tmp_path, HEAD + LOSSES[name])
    start = job.start(0, 1)
    assert run_selftest(job, start, CUDA, 2).unchanged in (True, None)
    observation = Observation(CUDA, seed=0, selftest=SelfTest(None, 0))
    observe_training(job, start, observation, observed_parts(1))
    assert observation.counted_by == "CUDA kernel"
    assert any("inside torch.func" in note for note in job.notes)
    outputs = {t.name for t in observation.tables if t.kind is TensorKind.ACTIVATION}
    assert outputs == (set() if name in ("jvp", "vmap") else {"0", "1", "2"})
    assert observe(job, start, CUDA).error is None


def test_a_sparse_batch_is_no_fault_of_the_users(tmp_path):
    text = """
    import torch
    from torch import nn

    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x.to_dense())

    def build_model():
        return Net(4, 1)

    def train_batches():
        return [torch.eye(4).to_sparse()]

    def compute_loss(model, x):
        return model(x).float().mean()
    """
    job = loaded(tmp_path, text)
    types = observe(job, job.start(0, 1), CUDA)
    assert (types.error, types.fed, types.finite_loss) == (None, (), True)


def test_a_model_that_is_made_once_on_the_card_is_the_same_for_every_run(tmp_path):
    once = HEAD.replace("return nn.Sequential(", "return M\n\nM = nn.Sequential(").replace(
        "nn.Linear(8, 1))", "nn.Linear(8, 1)).cuda()", 1
    )
    job = loaded(tmp_path, once + "\ndef compute_loss(model, x):\n    return model(x).float().square().mean()\n")

    def losses(precision: Precision) -> list[float]:
        start = job.start(0, 2)
        with open_session(job, start, precision, CUDA) as run:
            return [total(run.step(run.place(start.batch(i)))) for i in range(2)]

    before = losses(FP32_IEEE)
    losses(PURE)
    assert losses(FP32_IEEE) == before
