"""`--start-from`: every run begins at a checkpoint's weights and at its optimizer's state, where it has one."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpdiag
from mpdiag.cli.main import main
from mpdiag.errors import MpdiagError, UsageError
from mpdiag.target import Job, load_job
from mpdiag.target.checkpoint import read_checkpoint
from mpdiag.target.job import ONLY
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.training.session import open_session

CPU = torch.device("cpu")
PURE = Precision("pure", torch.float16, pure=True)

# one weight w, loss w * x with x = 1, 2, 3 ...: the gradient is x, so every step can be worked out on paper
TARGET = """
import torch
from torch import nn

def build_model():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 8.0)
    return model

def train_batches():
    return [torch.full((1, 1), float(i)) for i in (1, 2, 3)]

def compute_loss(model, batch):
    return model(batch).sum()

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
"""
TWO = TARGET.replace("build_optimizer(", "build_optimizers(").replace(
    "    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)",
    "    return {n: torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5) for n in ('b', 'a')}",
).replace("    return model(batch).sum()\n", "").replace(
    "def compute_loss(model, batch):",
    "def compute_losses(model, batch):\n    yield 'a', model(batch).sum()\n    yield 'b', model(batch).sum()",
)  # fmt: skip


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "job.py"
    path.write_text(TARGET)
    return path


def sgd_state(momentum: float, rate: float) -> dict[str, Any]:
    """What an SGD with momentum saves: its buffer and its learning rate."""
    parameter = nn.Parameter(torch.zeros(1, 1))
    optimizer = torch.optim.SGD([parameter], lr=rate, momentum=0.5)
    optimizer.state[parameter]["momentum_buffer"] = torch.full((1, 1), momentum)
    return optimizer.state_dict()


def saved(tmp_path: Path, content: Any, name: str = "late.pt") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def weight(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([[value]])}


def losses(job: Job, precision: Precision = FP32_IEEE, seed: int = 0, steps: int = 3) -> list[float]:
    start = job.start(seed, steps)
    with open_session(job, start, precision, CPU) as run:
        return [float(run.step(run.place(start.batch(i)))[ONLY]) for i in range(steps)]


def refusal(target: Path, path: Path) -> MpdiagError:
    def load() -> None:
        job = load_job(str(target), path)
        job.optimizers(job.build(job.start(0, 1), CPU))

    with pytest.raises(UsageError) as caught:
        load()
    assert caught.value.hint
    return caught.value


# what is loaded


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
def test_the_first_loss_is_that_of_the_checkpoints_weights(target, tmp_path, key):
    content = weight(4.0) if key is None else {key: weight(4.0), "epoch": 7}
    job = load_job(str(target), saved(tmp_path, content))
    # w: 4, then 4 - 1 = 3, then momentum 0.5 * 1 + 2 = 2.5: 0.5
    assert losses(job) == [4.0 * 1, 3.0 * 2, 0.5 * 3]


def test_every_seed_starts_from_the_checkpoints_weights(target, tmp_path):
    job = load_job(str(target), saved(tmp_path, weight(4.0)))
    assert [losses(job, seed=seed)[0] for seed in (0, 1, 2)] == [4.0, 4.0, 4.0]


@pytest.mark.parametrize("key", ["optimizer", "optimizer_state_dict"])
def test_momentum_and_learning_rate_are_the_checkpoints(target, tmp_path, key):
    job = load_job(str(target), saved(tmp_path, {"model": weight(4.0), key: sgd_state(2.0, rate=0.25)}))
    # momentum 0.5 * 2 + 1 = 2, w = 4 - 0.25 * 2 = 3.5; then 0.5 * 2 + 2 = 3, w = 3.5 - 0.75 = 2.75
    assert losses(job) == [4.0, 3.5 * 2, 2.75 * 3]


def test_one_run_leaves_the_state_for_the_next_as_it_was(target, tmp_path):
    job = load_job(str(target), saved(tmp_path, {"model": weight(4.0), "optimizer": sgd_state(2.0, rate=0.25)}))
    assert losses(job) == losses(job) == losses(job, seed=1)


def test_adams_count_of_steps_is_not_shared_between_runs(tmp_path):
    path = tmp_path / "adam.py"
    path.write_text(TARGET.replace("SGD(model.parameters(), lr=1.0, momentum=0.5)", "Adam(model.parameters(), lr=0.5)"))
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.125)
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    before = copy.deepcopy(content)
    job = load_job(str(path), saved(tmp_path, content))
    assert losses(job) == losses(job)
    assert job.checkpoint is not None
    (kept,) = job.checkpoint.optimizers.values()
    assert {k: float(v) for k, v in kept["state"][0].items()} == {
        k: float(v) for k, v in before["optimizer"]["state"][0].items()
    }


def test_pure_fp16_takes_the_state_in_fp16(target, tmp_path):
    job = load_job(str(target), saved(tmp_path, {"model": weight(4.0), "optimizer": sgd_state(2.0 + 2**-15, 0.25)}))
    start = job.start(0, 1)
    with open_session(job, start, PURE, CPU) as run:
        (buffer,) = (values["momentum_buffer"] for values in run.optimizers[ONLY].state.values())
        assert (buffer.dtype, float(buffer)) == (torch.float16, 2.0)
        assert next(run.model.parameters()).dtype == torch.float16
        assert float(run.step(run.place(start.batch(0)))[ONLY]) == 4.0


def test_several_optimizers_take_their_states_by_name(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(TWO)
    states = {"a": sgd_state(2.0, 0.25), "b": sgd_state(0.0, 0.5)}
    job = load_job(str(path), saved(tmp_path, {"model": weight(4.0), "optimizer": states}))
    start = job.start(0, 1)
    with open_session(job, start, FP32_IEEE, CPU) as run:
        said = run.step(run.place(start.batch(0)))
        # a: momentum 0.5 * 2 + 1 = 2, w = 4 - 0.5 = 3.5; b: momentum 1, w = 3.5 - 0.5 = 3
        assert {name: float(loss) for name, loss in said.items()} == {"a": 4.0, "b": 3.5}
        assert run.model.weight.item() == 3.0


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_the_names_that_a_wrapper_makes_are_understood(target, tmp_path, prefix):
    job = load_job(str(target), saved(tmp_path, {prefix + name: value for name, value in weight(4.0).items()}))
    assert losses(job, steps=1) == [4.0]


def test_half_precision_weights_start_an_fp32_run(target, tmp_path):
    job = load_job(str(target), saved(tmp_path, {"weight": torch.tensor([[4.0]], dtype=torch.float16)}))
    start = job.start(0, 1)
    assert start.weights["weight"].dtype == torch.float32
    assert losses(job, steps=1) == [4.0]


def test_a_parameter_named_model_does_not_make_a_plain_state_dict_something_else(tmp_path):
    path = saved(tmp_path, {"model": torch.ones(2), "optimizer": torch.ones(3)})
    assert sorted(read_checkpoint(path).weights) == ["model", "optimizer"]
    assert read_checkpoint(path).optimizers == {}


@pytest.mark.parametrize("key", ["optimizers", "optimizer_states"])
@pytest.mark.parametrize("form", [list, tuple])
def test_a_list_of_optimizer_states_is_taken_in_the_jobs_order(tmp_path, key, form):
    path = tmp_path / "two.py"
    path.write_text(TWO)
    states = form([sgd_state(0.0, 0.5), sgd_state(2.0, 0.25)])  # the job builds b, then a
    job = load_job(str(path), saved(tmp_path, {"state_dict": weight(4.0), key: states}))
    start = job.start(0, 1)
    with open_session(job, start, FP32_IEEE, CPU) as run:
        assert [o.param_groups[0]["lr"] for o in (run.optimizers["b"], run.optimizers["a"])] == [0.5, 0.25]
        run.step(run.place(start.batch(0)))
        assert run.model.weight.item() == 3.0


def test_a_list_of_one_is_for_a_job_with_one(target, tmp_path):
    job = load_job(
        str(target), saved(tmp_path, {"state_dict": weight(4.0), "optimizer_states": [sgd_state(2.0, 0.25)]})
    )
    assert losses(job) == [4.0, 3.5 * 2, 2.75 * 3]


def test_an_empty_list_of_optimizer_states_is_none(target, tmp_path):
    job = load_job(str(target), saved(tmp_path, {"state_dict": weight(4.0), "optimizer_states": []}))
    assert losses(job) == [4.0, 6.0, 1.5]
    assert any("has no optimizer state" in note for note in job.notes)


def test_the_notes_say_which_hyper_parameters_are_the_checkpoints(target, tmp_path):
    job = load_job(str(target), saved(tmp_path, {"model": weight(4.0), "optimizer": sgd_state(2.0, rate=0.25)}))
    for _ in range(2):  # once, however often an optimizer is built
        job.optimizers(job.build(job.start(0, 1), CPU))
    assert [note for note in job.notes if note.startswith("from the checkpoint")] == [
        "from the checkpoint, not from the target file: lr 0.25 (1 in the file)"
    ]


def test_a_buffer_may_hold_infinities(tmp_path):
    path = tmp_path / "masked.py"
    path.write_text(
        TARGET.replace("    return model\n", "    model.register_buffer('mask', torch.zeros(1))\n    return model\n")
    )
    job = load_job(str(path), saved(tmp_path, weight(4.0) | {"mask": torch.tensor([-torch.inf])}))
    assert job.start(0, 1).weights["mask"].item() == -torch.inf


# a whole scan


def test_every_run_of_a_scan_starts_from_the_checkpoint(target, tmp_path):
    path = saved(tmp_path, {"model": weight(4.0), "optimizer": sgd_state(2.0, rate=0.25)})
    options = {"device": "cpu", "steps": 3, "verify_steps": 5, "seeds": 2, "start_from": path}
    diagnosis = mpdiag.scan(str(target), **options)
    assert diagnosis.capture is not None
    assert diagnosis.capture.losses[:2] == (4.0, 7.0)
    assert diagnosis.capture.unchanged is True
    assert diagnosis.verification is not None
    first = {(t.arm, t.seed): t.losses[0] for t in diagnosis.verification.trials}
    assert {arm for arm, _ in first} >= {"fp32", "fp16", "bf16", "fp16-pure"}
    assert set(first.values()) == {4.0}
    assert diagnosis.target is not None
    assert diagnosis.target.start_from == str(path)
    assert diagnosis.target.optimizer == "SGD(lr=0.25)"
    assert any("with its optimizer state and learning rate" in note for note in diagnosis.target.notes)


def test_a_checkpoint_without_an_optimizer_says_that_it_starts_fresh(target, tmp_path):
    path = saved(tmp_path, weight(4.0))
    diagnosis = mpdiag.scan(str(target), device="cpu", steps=1, verify=False, start_from=path)
    assert diagnosis.target is not None
    assert diagnosis.target.optimizer == "SGD(lr=1)"
    assert any(
        "the optimizer starts fresh, at the target file's own learning rate" in n for n in diagnosis.target.notes
    )


def test_without_a_checkpoint_a_job_starts_at_initialisation(target):
    job = load_job(str(target))
    assert (job.checkpoint, losses(job, steps=1)) == (None, [8.0])


def test_the_command_line_takes_the_checkpoint(target, tmp_path, monkeypatch):
    path = saved(tmp_path, weight(4.0))
    out = tmp_path / "out.json"
    words = ["scan", str(target), "--device", "cpu", "--steps", "1", "--no-verify", "--start-from", str(path)]
    words += ["--json", str(out), "--html", str(tmp_path / "out.html")]
    monkeypatch.setattr(sys, "argv", ["mpdiag", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, 1)  # findings on a one-weight job are another matter
    record = json.loads(out.read_text())
    assert record["target"]["start_from"] == str(path)
    assert record["capture"]["losses"] == [4.0]


def test_the_checkpoint_is_never_written_over(target, tmp_path, monkeypatch, capsys):
    path = saved(tmp_path, weight(4.0))
    before = path.read_bytes()
    monkeypatch.setattr(sys, "argv", ["mpdiag", "scan", str(target), "--start-from", str(path), "--json", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, "error[output-clash]" in capsys.readouterr().err) == (2, True)
    assert path.read_bytes() == before


# what cannot be loaded


def test_a_missing_file_and_a_folder_are_named(target, tmp_path):
    assert (refusal(target, tmp_path / "none.pt").slug, refusal(target, tmp_path).slug) == ("no-such-file",) * 2


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", b"PK\x03\x04 no zip"], ids=["empty file", "text", "broken archive"]
)
def test_what_torch_did_not_write_is_no_checkpoint(target, tmp_path, content):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    error = refusal(target, path)
    assert error.slug == "not-a-checkpoint"
    assert "\n" not in error.message


@pytest.mark.parametrize(
    "content",
    [nn.Linear(1, 1), [torch.ones(1)], {"epoch": 3}, {"model": weight(1.0), "optimizer": {"lr": 0.1}}, 7],
    ids=["a whole module", "a list", "no tensors", "no optimizer state", "a number"],
)
def test_what_holds_no_state_dict_is_no_checkpoint(target, tmp_path, content):
    error = refusal(target, saved(tmp_path, content))
    assert error.slug == "not-a-checkpoint"
    assert "state_dict()" in error.hint
    assert "\n" not in error.message


def test_a_checkpoint_runs_no_code(target, tmp_path):
    error = refusal(target, saved(tmp_path, {"model": weight(1.0), "extra": nn.Linear(1, 1)}))
    assert error.slug == "not-a-checkpoint"


def test_names_that_do_not_fit_are_named_the_first_few(target, tmp_path):
    content = {f"layer{i}.weight": torch.ones(1) for i in range(6)}
    error = refusal(target, saved(tmp_path, content))
    assert error.slug == "checkpoint-does-not-fit"
    assert "1 missing there: weight" in error.message
    assert "6 unknown here: layer0.weight, layer1.weight, layer2.weight, layer3.weight, ..." in error.message


def test_another_shape_is_named_with_both_shapes(target, tmp_path):
    error = refusal(target, saved(tmp_path, {"weight": torch.ones(2, 1)}))
    assert error.slug == "checkpoint-does-not-fit"
    assert "weight is (2, 1) there and (1, 1) here" in error.message


@pytest.mark.parametrize(
    "states",
    [
        {"a": sgd_state(0.0, 1.0), "b": sgd_state(0.0, 1.0)},
        torch.optim.SGD([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))], lr=1.0).state_dict(),
    ],
    ids=["two for one", "more parameters"],
)
def test_an_optimizer_state_that_does_not_fit_is_refused(target, tmp_path, states):
    error = refusal(target, saved(tmp_path, {"model": weight(4.0), "optimizer": states}))
    assert error.slug == "checkpoint-optimizer"


def test_a_target_says_where_its_data_is_from(target):
    target.write_text(TARGET + "DATA_SOURCE = 'patches of two photos'\n")
    assert "data: patches of two photos" in load_job(str(target)).notes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"epoch 3\nloss 0.5\n", "a text file, not one that torch.save wrote"),
        ("Verlust: 0,5 für".encode()[:-2], "a text file, not one that torch.save wrote"),  # cut within the u umlaut
        (b"\xc3\x28\xff\xfe" * 250, "no archive and no pickle, so not what torch.save writes"),
        (b'\x10\0\0\0\0\0\0\0{"weight": 1}', "a safetensors file, which"),
    ],
)
def test_what_no_checkpoint_is_is_said_in_one_line(target, tmp_path, content, said):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    assert refusal(target, path).message.startswith(f"{path}: {said}")


def optimizer_state(kind: str, **more: Any) -> dict[str, Any]:
    """What an optimizer of torch's saves after one step."""
    parameter = nn.Parameter(torch.zeros(1, 1))
    optimizer = getattr(torch.optim, kind)([parameter], lr=0.5, **more)
    parameter.grad = torch.ones(1, 1)
    optimizer.step()
    return optimizer.state_dict()


KINDS = ("SGD", "Adam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "NAdam", "Rprop", "ASGD", "Adafactor")


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_the_state_of_another_kind_of_optimizer_is_refused(tmp_path, here, there):
    path = tmp_path / "job.py"
    path.write_text(
        TARGET.replace("SGD(model.parameters(), lr=1.0, momentum=0.5)", f"{here}(model.parameters(), lr=0.5)")
    )
    late = saved(tmp_path, {"model": weight(4.0), "optimizer": optimizer_state(there)})
    if here == there:
        assert losses(load_job(str(path), late), steps=1) == [4.0]
        return
    error = refusal(path, late)
    assert error.slug == "checkpoint-optimizer"
    assert "has the state of another optimizer than" in error.message
    assert here in error.message


def test_adam_and_adamw_share_their_state(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(
        TARGET.replace("SGD(model.parameters(), lr=1.0, momentum=0.5)", "AdamW(model.parameters(), lr=0.5)")
    )
    late = saved(tmp_path, {"model": weight(4.0), "optimizer": optimizer_state("Adam")})
    assert losses(load_job(str(path), late), steps=1) == [4.0]


def test_what_an_older_torch_did_not_save_is_filled_in(target, tmp_path):
    state = sgd_state(2.0, 0.25)
    for name in ("nesterov", "maximize", "foreach", "differentiable", "fused"):
        del state["param_groups"][0][name]
    assert losses(load_job(str(target), saved(tmp_path, {"model": weight(4.0), "optimizer": state}))) == [
        4.0,
        7.0,
        8.25,
    ]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_weights_that_are_not_finite_are_named(target, tmp_path, value, dtype):
    error = refusal(target, saved(tmp_path, {"weight": torch.tensor([[value]]).to(dtype)}))
    assert error.slug == "checkpoint-not-finite"
    assert error.message.endswith("1 of 1 tensors are not finite: weight")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_weights_of_a_type_that_holds_no_real_fractions_are_refused(target, tmp_path, dtype):
    error = refusal(target, saved(tmp_path, {"weight": torch.ones(1, 1).to(dtype)}))
    assert error.slug == "checkpoint-does-not-fit"
    assert f"1 of another type: weight is {str(dtype).removeprefix('torch.')} there and float32 here" in error.message


def test_lists_of_another_length_are_refused(target, tmp_path):
    states = [sgd_state(0.0, 1.0)] * 2
    error = refusal(target, saved(tmp_path, {"model": weight(4.0), "optimizers": states}))
    assert error.slug == "checkpoint-optimizer"
    assert "has the state of 2 optimizers" in error.message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_optimizer_state_that_is_not_finite_is_told_of_the_checkpoint(target, tmp_path, value):
    path = saved(tmp_path, {"model": weight(1.0), "optimizer": sgd_state(value, 1.0)})
    with pytest.raises(UsageError) as raised:
        losses(load_job(str(target), path))
    assert raised.value.slug == "checkpoint-not-finite"
    assert "1 tensor of the optimizer is not finite: momentum_buffer of parameter 0" in raised.value.message


def test_an_optimizer_state_of_another_shape_is_told_of_the_checkpoint(target, tmp_path):
    state = sgd_state(0.5, 1.0)
    state["state"][0]["momentum_buffer"] = torch.zeros(3)
    path = saved(tmp_path, {"model": weight(1.0), "optimizer": state})
    with pytest.raises(UsageError) as raised:
        losses(load_job(str(target), path))
    assert raised.value.slug == "checkpoint-optimizer"
    assert "momentum_buffer of parameter 0 is (3,) there, and the parameter is (1, 1)" in raised.value.message


@pytest.mark.parametrize(
    "kind",
    [
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "ASGD",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    ],
)
def test_what_torchs_own_optimizers_save_is_sound(tmp_path, kind):
    path = tmp_path / "job.py"
    path.write_text(TARGET.replace("torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)", f"torch.optim.{kind}("
                    "model.parameters(), lr=0.1)"))  # fmt: skip
    job = load_job(str(path))
    with open_session(job, job.start(0, 3), FP32_IEEE, CPU) as run:
        for step in range(2):
            run.step(run.place(job.start(0, 3).batch(step)))
        content = {"model": run.model.state_dict(), "optimizer": run.optimizers[ONLY].state_dict()}
        again = saved(tmp_path, content)
    assert len(losses(load_job(str(path), again))) == 3
