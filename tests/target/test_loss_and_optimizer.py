"""What a target trains by: its loss, its optimizers, its metric, and what mixed precision cannot train."""

from __future__ import annotations

import pytest
import torch

from mpdiag.errors import UsageError, UserCodeError
from mpdiag.target import load_job
from mpdiag.target.job import ONLY
from target_samples import BATCHES, HEAD, LOSS, MODEL, WHOLE, one_step, refusal

# loss, optimizer, metric


def test_loss_fn_takes_the_output_and_the_target(write):
    text = HEAD + MODEL + "def train_batches():\n    return [(torch.ones(4, 2), torch.full((4, 1), 3.0))]\n"
    text += "def loss_fn(output, target):\n    return (output - output.detach() + target).mean()\n"
    assert one_step(load_job(str(write(text))))[ONLY].item() == 3.0


def test_loss_fn_may_be_a_module(write):
    text = (
        HEAD + "def build_model():\n    return nn.init.ones_(m.weight) is None or m\nm = nn.Linear(2, 1, bias=False)\n"
    )
    text += "def train_batches():\n    return [[torch.ones(4, 2), torch.zeros(4, 1)]]\nloss_fn = nn.MSELoss()\n"
    assert one_step(load_job(str(write(text))))[ONLY].item() == 4.0


def test_loss_fn_needs_batches_of_two(write):
    text = HEAD + MODEL + BATCHES + "loss_fn = nn.MSELoss()\n"
    with pytest.raises(UsageError, match=r"needs batches of \(input, target\), got Tensor") as caught:
        one_step(load_job(str(write(text))))
    assert caught.value.slug == "target-no-loss"


SELF_LOSS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0))
    def forward(self, x, y=None):
        return {result}
def build_model():
    return Net()
def train_batches():
    return [{batch}]
"""


@pytest.mark.parametrize(
    "result",
    ["{'loss': (self.w * x).sum()}", "types.SimpleNamespace(loss=(self.w * x).sum())"],
    ids=["mapping", "attribute"],
)
@pytest.mark.parametrize(
    "batch", ["{'x': torch.ones(3)}", "(torch.ones(3), None)", "torch.ones(3)"], ids=["dict", "tuple", "tensor"]
)
def test_without_a_loss_function_the_outputs_own_loss_is_taken(write, result, batch):
    text = "import types\n" + HEAD + SELF_LOSS.format(result=result, batch=batch)
    assert one_step(load_job(str(write(text))))[ONLY].item() == 6.0


def test_without_any_loss_the_user_is_told_what_to_add(write):
    with pytest.raises(UsageError, match=r"defines no loss, and the model's output \(Tensor\) has no .loss") as caught:
        one_step(load_job(str(write(HEAD + MODEL + BATCHES))))
    assert caught.value.slug == "target-no-loss"
    assert "compute_loss" in caught.value.hint


def test_without_an_optimizer_adamw_is_used_and_noted(write):
    job = load_job(str(write(WHOLE)))
    optimizer = job.build_optimizers(job.build_model())[ONLY]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert job.notes == ("the target builds no optimizer: AdamW(lr=0.001) was used",)


@pytest.mark.parametrize(
    "returned",
    ["[o]", "(o,)", "([o], [])", "{'optimizer': o, 'lr_scheduler': None}"],
    ids=["list", "tuple", "two lists", "mapping"],
)
def test_the_forms_of_configure_optimizers_are_understood(write, returned):
    text = (
        WHOLE
        + f"def configure_optimizers(model):\n    o = torch.optim.SGD(model.parameters(), 0.1)\n    return {returned}\n"
    )
    job = load_job(str(write(text)))
    assert isinstance(job.build_optimizers(job.build_model())[ONLY], torch.optim.SGD)


@pytest.mark.parametrize("returned", ["[o], [s]", "{'optimizer': o, 'lr_scheduler': s}", "o"])
def test_a_learning_rate_scheduler_is_said_to_be_left_alone(write, returned):
    text = WHOLE + "def configure_optimizers(model):\n    o = torch.optim.SGD(model.parameters(), 0.1)\n"
    text += f"    s = torch.optim.lr_scheduler.StepLR(o, 1)\n    return {returned}\n"
    job = load_job(str(write(text)))
    for _ in range(2):
        job.optimizers(job.build_model())
    (note,) = job.notes
    assert "learning-rate scheduler, which is not stepped" in note
    plain = load_job(str(write(text.replace("StepLR(o, 1)", "__name__"))))
    plain.optimizers(plain.build_model())
    assert plain.notes == ()


@pytest.mark.parametrize("returned", ["None", "3", "{}", "[]", "()", "[[]]"])
def test_an_optimizer_function_that_returns_none_is_refused(write, returned):
    job = load_job(str(write(WHOLE + f"def build_optimizer(model):\n    return {returned}\n")))
    with pytest.raises(UsageError) as caught:
        job.build_optimizers(job.build_model())
    assert caught.value.slug == "target-no-optimizer"


def test_several_optimizers_and_losses_are_matched_by_name(write):
    text = HEAD + MODEL + BATCHES
    text += "def build_optimizers(model):\n    return {'a': torch.optim.SGD(model.parameters(), 0.1)}\n"
    text += "def compute_losses(model, batch):\n    yield 'a', model(batch).mean()\n"
    assert list(one_step(load_job(str(write(text))))) == ["a"]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("0.5", {"metric": 0.5}),
        ("torch.tensor(0.25)", {"metric": 0.25}),
        ("3", {"metric": 3.0}),
        ("{'acc': 0.5, 'f1': torch.tensor(1.0)}", {"acc": 0.5, "f1": 1.0}),
    ],
)
def test_a_metric_is_a_number_or_numbers_by_name(write, returned, expected):
    job = load_job(str(write(WHOLE + f"def evaluate(model):\n    return {returned}\n")))
    assert job.evaluate(job.build_model()) == expected


@pytest.mark.parametrize("returned", ["None", "True", "'high'", "[0.5]"])
def test_a_metric_that_is_no_number_is_refused(write, returned):
    job = load_job(str(write(WHOLE + f"def evaluate(model):\n    return {returned}\n")))
    with pytest.raises(UsageError) as caught:
        job.evaluate(job.build_model())
    assert caught.value.slug == "metric-not-a-number"


def test_a_target_without_a_metric_has_none(write):
    assert load_job(str(write(WHOLE))).evaluate is None


# what mixed precision cannot train


def test_an_optimizer_that_needs_a_closure_is_refused_with_the_way_out(write):
    text = WHOLE + "def build_optimizer(model):\n    return torch.optim.LBFGS(model.parameters())\n"
    with pytest.raises(UsageError, match="LBFGS needs a closure") as caught:
        one_step(load_job(str(write(text))))
    assert caught.value.slug == "optimizer-needs-closure"
    assert "AdamW or SGD" in caught.value.hint


def test_an_optimizer_that_may_take_a_closure_is_taken(write):
    text = WHOLE + "def build_optimizer(model):\n    return torch.optim.Rprop(model.parameters())\n"
    assert one_step(load_job(str(write(text))))[ONLY].shape == ()


def test_a_lazy_model_is_refused_with_the_way_out(write):
    text = HEAD + "def build_model():\n    return nn.Sequential(nn.LazyLinear(3))\n" + BATCHES + LOSS
    with pytest.raises(UsageError, match=r"0\.weight has no shape yet") as caught:
        load_job(str(write(text))).start(0, 1)
    assert (caught.value.slug, "one batch" in caught.value.hint) == ("lazy-model", True)


def test_a_lazy_model_that_has_seen_a_batch_is_taken(write):
    text = (
        HEAD + "def build_model():\n    m = nn.LazyLinear(3)\n    m(torch.ones(1, 2))\n    return m\n" + BATCHES + LOSS
    )
    assert one_step(load_job(str(write(text))))[ONLY].shape == ()


@pytest.mark.parametrize("raised", ["torch.empty(2**50)", "bytearray(2**60)", "numpy.empty(2**55)"])
def test_memory_that_runs_out_on_a_cpu_has_its_own_slug(write, raised):
    text = "import numpy\n" + HEAD + MODEL + BATCHES + f"def compute_loss(model, batch):\n    {raised}\n"
    with pytest.raises(UserCodeError) as caught:
        one_step(load_job(str(write(text))))
    assert caught.value.slug == "out-of-memory"


@pytest.mark.parametrize("setting", ["DATA_SOURCE", "SYNTHETIC_DATA"])
def test_a_setting_whose_own_methods_raise_is_refused(write, setting):
    text = (
        "class Odd:\n    def __str__(self, *_):\n        raise ValueError('no')\n    __format__ = __bool__ = __str__\n"
    )
    error = refusal(write(WHOLE + text + f"{setting} = Odd()\n"))
    assert (type(error), error.slug) == (UsageError, "target-setting")
    assert f"{setting} is not" in error.message
