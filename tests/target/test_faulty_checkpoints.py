"""A checkpoint whose tensors or optimizer state no step can be made with: said of the checkpoint, in one line."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.errors import UsageError
from mpdiag.target import load_job
from mpdiag.target.optimizer_state import why_unsound
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session
from target_samples import BATCHES, CPU, HEAD, LOSS, MODEL, WHOLE

WEIGHTS = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}


def adam_state() -> dict[str, Any]:
    """What AdamW saves after a step, the bias being parameter 1."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return copy.deepcopy(optimizer.state_dict())


def refusal(path: Path, content: Any, folder: Path) -> UsageError:
    def begin() -> None:
        job = load_job(str(path), folder / "late.pt")
        job.optimizers(job.build(job.start(0, 1), CPU))

    torch.save(content, folder / "late.pt")
    with pytest.raises(UsageError) as caught:
        begin()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


# weights


def test_weights_without_numbers_are_no_checkpoint(write, tmp_path):
    error = refusal(write(WHOLE), {name: value.to("meta") for name, value in WEIGHTS.items()}, tmp_path)
    assert error.slug == "not-a-checkpoint"
    assert error.message.endswith("late.pt: 2 of 2 tensors have no numbers (meta device): weight, bias")


def test_sparse_weights_do_not_fit_a_model_of_dense_ones(write, tmp_path):
    error = refusal(write(WHOLE), {**WEIGHTS, "weight": WEIGHTS["weight"].to_sparse()}, tmp_path)
    assert error.slug == "checkpoint-does-not-fit"
    assert error.message.endswith("1 of another type: weight is sparse_coo there and strided here")


SPARSE = """
class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 1)
        self.register_buffer("rows", torch.eye(2).{how}())
def build_model():
    return Net()
"""


@pytest.mark.parametrize("how", ["to_sparse", "to_sparse_csr"])
def test_a_sparse_buffer_is_taken_into_one_of_its_layout(write, tmp_path, how):
    rows = getattr(3 * torch.eye(2), how)()
    torch.save({**WEIGHTS, "rows": rows}, tmp_path / "late.pt")
    job = load_job(str(write(HEAD + SPARSE.format(how=how) + BATCHES + LOSS)), tmp_path / "late.pt")
    assert job.build(job.start(0, 1), CPU).rows.to_dense().tolist() == [[3.0, 0.0], [0.0, 3.0]]
    error = refusal(tmp_path / "job.py", {**WEIGHTS, "rows": rows * math.nan}, tmp_path)
    assert error.slug == "checkpoint-not-finite"


# the optimizer's state


def group(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["param_groups"][0].update(changed)


def of_the_bias(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["state"][1].update(changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (group(lr="x"), "lr is 'x' there"),
        (group(lr=None), "lr is None there"),
        (group(lr=math.nan), "lr is nan there"),
        (group(lr=math.inf), "lr is inf there"),
        (group(lr=torch.ones(3)), "lr is of type Tensor there"),
        (group(lr=torch.tensor(1.0, device="meta")), "lr is of type Tensor there"),
        (group(betas=0.9), "betas is 0.9 there"),
        (group(betas=(0.9, 0.99, 0.999)), "betas is of type tuple there"),
        (group(betas=(0.9, "much too long to be shown in one line")), "betas is of type str in a part there"),
        (group(betas=(2.0, 3.0)), "Invalid beta parameter at index 0: 2.0"),
        (group(weight_decay=-1.0), "Invalid weight_decay value: -1.0"),
        (of_the_bias(exp_avg=None), "exp_avg of parameter 1 is None there"),
        (of_the_bias(exp_avg=0.5), "exp_avg of parameter 1 is 0.5 there"),
        (of_the_bias(exp_avg=torch.ones(1).to_sparse()), "exp_avg of parameter 1 is a sparse_coo tensor there"),
        (of_the_bias(exp_avg=torch.ones(1, device="meta")), "exp_avg of parameter 1 is a tensor without numbers"),
        (of_the_bias(step="three"), "step of parameter 1 is 'three' there"),
    ],
)
def test_a_state_that_no_step_can_be_made_with_is_told_of_the_checkpoint(write, tmp_path, change, said):
    state = adam_state()
    change(state)
    error = refusal(write(WHOLE), {"model": WEIGHTS, "optimizer": state}, tmp_path)
    assert error.slug == "checkpoint-optimizer"
    assert said in error.message


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(state=[1, 2]),
        lambda state: state.update(param_groups={}),
        lambda state: state.update(param_groups=[1]),
        lambda state: state["param_groups"][0].pop("params"),
    ],
    ids=["a list of states", "a dict of groups", "a group that is a number", "a group of no parameters"],
)
def test_what_is_no_state_of_an_optimizer_makes_no_checkpoint(write, tmp_path, change):
    state = adam_state()
    change(state)
    error = refusal(write(WHOLE), {"model": WEIGHTS, "optimizer": state}, tmp_path)
    assert error.slug == "not-a-checkpoint"
    assert "its optimizer entry is no optimizer's state_dict" in error.message


@pytest.mark.parametrize("change", [group(lr=0), group(lr=-1e-19), group(lr=torch.tensor(0.5)), group(eps=0)])
def test_a_rate_of_nothing_and_one_in_a_tensor_are_sound(write, tmp_path, change):
    state = adam_state()
    change(state)
    torch.save({"model": WEIGHTS, "optimizer": state}, tmp_path / "late.pt")
    job = load_job(str(write(WHOLE)), tmp_path / "late.pt")
    with open_session(job, job.start(0, 1), FP32_IEEE, CPU) as run:
        run.step(run.place(job.start(0, 1).batch(0)))


OWN = """
class Sign(torch.optim.Optimizer):
    def __init__(self, params, rate=0.5, most=float("inf"), kind="plain"):
        super().__init__(params, {"rate": rate, "most": most, "kind": kind})
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["rate"] * p.grad.sign()
def build_optimizer(model):
    return Sign(model.parameters())
"""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": 3, "most": math.inf}, None),
        ({"rate": math.nan}, "rate is nan there"),
        ({"most": math.nan}, "most is nan there"),
    ],
)
def test_of_an_optimizer_of_the_users_own_the_numbers_are_looked_at(write, tmp_path, changed, said):
    path = write(HEAD + MODEL + BATCHES + LOSS + OWN)
    job = load_job(str(path))
    saved = job.optimizers(job.build(job.start(0, 1), CPU))["loss"].state_dict()
    saved["state"] = {0: {"note": "what it likes"}}
    saved["param_groups"][0].update(changed)
    if said is not None:
        assert said in refusal(path, {"model": WEIGHTS, "optimizer": saved}, tmp_path).message
        return
    torch.save({"model": WEIGHTS, "optimizer": saved}, tmp_path / "late.pt")
    job = load_job(str(path), tmp_path / "late.pt")
    assert job.optimizers(job.build(job.start(0, 1), CPU))


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Rprop", "Adagrad", "ASGD",
                                  "Adadelta", "Adafactor", "SGD", "SparseAdam", "Muon"])  # fmt: skip
def test_what_torchs_own_optimizers_save_is_sound_before_and_after_a_step(kind):
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = getattr(torch.optim, kind)([parameter])
    assert why_unsound(optimizer, optimizer.state_dict()) is None
    parameter.grad = torch.ones(2, 2).to_sparse() if kind == "SparseAdam" else torch.ones(2, 2)
    optimizer.step()
    assert why_unsound(optimizer, optimizer.state_dict()) is None


def test_an_old_sgd_that_saved_no_momentum_is_sound():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    saved = {**optimizer.state_dict(), "state": {0: {"momentum_buffer": None}}}
    assert why_unsound(optimizer, saved) is None
