"""How a training job gets in: every name and form of the contract, and every way it can be wrong."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from mpdiag.errors import MpdiagError, UsageError, UserCodeError
from mpdiag.target import Job, load_job
from mpdiag.target.batches import bytes_of, draw, map_tensors, samples_in, tensors_in
from mpdiag.target.job import ONLY
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session

CPU = torch.device("cpu")
HEAD = "import torch\nfrom torch import nn\n"
MODEL = "def build_model():\n    return nn.Linear(2, 1)\n"
BATCHES = "def train_batches():\n    return [torch.full((4, 2), float(i)) for i in range(3)]\n"
LOSS = "def compute_loss(model, batch):\n    return model(batch).pow(2).mean()\n"
WHOLE = HEAD + MODEL + BATCHES + LOSS

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a target file and gives its path; what importing it changes is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def writing(text: str, name: str = "job.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    yield writing
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def one_step(job: Job) -> dict[str, torch.Tensor]:
    start = job.start(0, 2)
    with open_session(job, start, FP32_IEEE, CPU) as run:
        return run.step(run.place(start.batch(0)))


def refusal(target: Any) -> MpdiagError:
    with pytest.raises(MpdiagError) as caught:
        load_job(str(target))
    return caught.value


# every name


@pytest.mark.parametrize("name", ["build_model", "get_model", "create_model", "make_model", "model"])
def test_the_model_function_is_found_by_each_of_its_names(write, name):
    job = load_job(str(write(HEAD + MODEL.replace("build_model", name) + BATCHES + LOSS)))
    assert isinstance(job.build_model(), nn.Linear)


@pytest.mark.parametrize("name", ["train_batches", "get_batches", "train_dataloader", "get_dataloader"])
def test_the_batches_are_found_by_each_of_their_names(write, name):
    job = load_job(str(write(HEAD + MODEL + BATCHES.replace("train_batches", name) + LOSS)))
    assert [batch[0, 0].item() for batch in job.start(0, 8).batches] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("name", ["compute_loss", "training_step"])
def test_the_loss_is_found_by_each_of_its_names(write, name):
    job = load_job(str(write(HEAD + MODEL + BATCHES + LOSS.replace("compute_loss", name))))
    assert one_step(job)[ONLY].shape == ()


@pytest.mark.parametrize("name", ["build_optimizer", "get_optimizer", "configure_optimizers"])
def test_the_optimizer_is_found_by_each_of_its_names(write, name):
    text = WHOLE + f"def {name}(model):\n    return torch.optim.SGD(model.parameters(), lr=0.25)\n"
    job = load_job(str(write(text)))
    optimizers = job.build_optimizers(job.build_model())
    assert isinstance(optimizers[ONLY], torch.optim.SGD)
    assert job.notes == ()


@pytest.mark.parametrize("name", ["HIGHER_IS_BETTER", "higher_is_better"])
def test_the_metrics_direction_is_found_by_each_of_its_names(write, name):
    assert load_job(str(write(WHOLE + f"{name} = False\n"))).higher_is_better is False
    assert load_job(str(write(WHOLE, "other.py"))).higher_is_better is True


def test_the_first_name_of_a_list_wins(write):
    text = WHOLE + "def get_model():\n    return nn.Identity()\n"
    assert isinstance(load_job(str(write(text))).build_model(), nn.Linear)


# the forms of a target


def test_a_file_gives_its_stem_as_the_jobs_name(write):
    path = write(WHOLE, "resnet.py")
    job = load_job(str(path))
    assert (job.name, job.source) == ("resnet", str(path))


def test_file_and_attribute_take_that_model(write):
    path = write(WHOLE + "def other():\n    return nn.Bilinear(1, 1, 1)\n")
    job = load_job(f"{path}:other")
    assert isinstance(job.build_model(), nn.Bilinear)
    assert job.name == "job:other"


def test_a_package_and_module_take_that_model(write, tmp_path, monkeypatch):
    write("", "zoo_for_tests/__init__.py")
    write(WHOLE + "def other():\n    return nn.Bilinear(1, 1, 1)\n", "zoo_for_tests/small.py")
    monkeypatch.chdir(tmp_path)
    job = load_job("zoo_for_tests.small:other")
    assert isinstance(job.build_model(), nn.Bilinear)
    assert job.source == "zoo_for_tests.small"
    assert job.name == "zoo_for_tests.small:other"


def test_a_relative_path_is_taken_from_the_working_folder(write, tmp_path, monkeypatch):
    write(WHOLE, "deep/job.py")
    monkeypatch.chdir(tmp_path)
    assert load_job("deep/job.py").name == "job"


def test_a_file_imports_its_neighbours(write):
    write("WIDTH = 3\n", "neighbour_for_tests.py")
    path = write(WHOLE.replace("nn.Linear(2, 1)", "nn.Linear(2, WIDTH)") + "from neighbour_for_tests import WIDTH\n")
    assert load_job(str(path)).build_model().out_features == 3


def test_two_files_of_one_name_are_two_jobs(write):
    one = load_job(str(write(WHOLE, "a/model.py")))
    two = load_job(str(write(WHOLE.replace("nn.Linear(2, 1)", "nn.Linear(2, 5)"), "b/model.py")))
    assert (one.build_model().out_features, two.build_model().out_features) == (1, 5)


def test_a_dataclass_in_a_target_file_is_a_dataclass(write):
    text = "from __future__ import annotations\nimport dataclasses\n" + WHOLE
    text += "@dataclasses.dataclass\nclass Batch:\n    x: torch.Tensor\n    y: torch.Tensor | None = None\n"
    assert load_job(str(write(text))).name == "job"


def test_a_model_instance_is_copied_for_each_run(write):
    text = HEAD + "model = nn.Linear(2, 1)\n" + BATCHES + LOSS
    job = load_job(str(write(text)))
    first, second = job.build_model(), job.build_model()
    first.weight.data.zero_()
    assert first is not second
    assert second.weight.abs().sum() > 0


def test_a_model_class_is_a_model_function(write):
    text = HEAD + "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 1)\n" + BATCHES + LOSS
    assert type(load_job(f"{write(text)}:Net").build_model()).__name__ == "Net"


# batches


@pytest.mark.parametrize(
    "batches",
    [
        "def train_batches():\n    for i in range(3):\n        yield torch.full((4, 2), float(i))\n",
        "train_batches = [torch.full((4, 2), float(i)) for i in range(3)]\n",
        "train_batches = (torch.full((4, 2), float(i)) for i in range(3))\n",
        "train_batches = iter([torch.full((4, 2), float(i)) for i in range(3)])\n",
        "def train_batches():\n    return torch.utils.data.DataLoader(torch.arange(3.0)[:, None, None].expand(3, 4, 2),"
        " batch_size=None)\n",
    ],
    ids=["generator function", "list", "generator", "iterator", "loader"],
)
def test_every_start_sees_the_batches_from_the_first_on(write, batches):
    job = load_job(str(write(HEAD + MODEL + batches + LOSS)))
    for seed, count in ((0, 2), (1, 3), (0, 3), (2, 1)):
        drawn = [batch[0, 0].item() for batch in job.start(seed, count).batches]
        assert drawn == [0.0, 1.0, 2.0][:count]


def test_after_the_last_batch_comes_the_first(write):
    start = load_job(str(write(WHOLE))).start(0, 8)
    assert [start.batch(step)[0, 0].item() for step in range(5)] == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_an_endless_source_is_read_only_as_far_as_needed(write):
    text = "def train_batches():\n    while True:\n        yield torch.rand(4, 2)\n"
    assert len(load_job(str(write(HEAD + MODEL + text + LOSS))).start(0, 5).batches) == 5


def test_a_loader_that_reuses_its_buffer_still_gives_different_batches():
    def reusing():
        buffer = torch.zeros(2)
        for i in range(3):
            yield buffer.fill_(i)

    assert [batch[0].item() for batch in draw(reusing(), 3, 2**20)[0]] == [0.0, 1.0, 2.0]


def test_drawing_stops_at_the_limit_of_bytes_but_takes_one():
    source = lambda: (torch.zeros(100) for _ in range(10))
    assert len(draw(source(), 10, 1)[0]) == 1
    assert len(draw(source(), 10, 1200)[0]) == 3
    assert draw(iter(()), 10, 1200) == ([], None)


def test_what_a_source_takes_for_a_batch_is_noted_without_the_first():
    def slow():
        time.sleep(0.2)  # workers start
        for _ in range(4):
            yield torch.zeros(1)
            time.sleep(0.02)

    _, mean_ms = draw(slow(), 4, 2**20)
    assert 20 <= mean_ms < 100
    assert draw(slow(), 2, 2**20)[1] is None


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


# what is refused


@pytest.mark.parametrize("target", ["nowhere.py", "no/such/file", "nowhere.py:attr", "nosuchthing"])
def test_a_file_that_is_not_there_is_refused(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(target).slug == "target-not-found"


def test_a_folder_is_refused_as_one(tmp_path):
    error = refusal(tmp_path)
    assert (error.slug, error.message) == ("target-not-found", f"{tmp_path}: is a folder")


@pytest.mark.parametrize("target", ["no_such_package_at_all:model", "no_such_package_at_all.sub:model"])
def test_a_package_that_is_not_there_is_refused(target, write):
    error = refusal(target)
    assert (error.slug, error.message) == ("target-not-found", f"{target}: no module named no_such_package_at_all")


def test_a_module_that_is_not_in_its_package_is_refused(write, tmp_path, monkeypatch):
    write("", "zoo_without_small/__init__.py")
    monkeypatch.chdir(tmp_path)
    error = refusal("zoo_without_small.small:model")
    assert (error.slug, error.message) == (
        "target-not-found",
        "zoo_without_small.small:model: no module named zoo_without_small.small",
    )


def test_a_package_whose_own_import_is_missing_is_the_users_error(write, tmp_path, monkeypatch):
    write("import a_missing_dependency\n", "zoo_needing_more/__init__.py")
    monkeypatch.chdir(tmp_path)
    error = refusal("zoo_needing_more:model")
    assert isinstance(error, UserCodeError)
    assert "a_missing_dependency" in error.message


def test_loading_packages_adds_the_working_folder_to_the_import_path_once(write):
    for _ in range(3):
        refusal("no_such_package_at_all:model")
    assert sys.path.count("") == 1


@pytest.mark.parametrize(("text", "line"), [("x = 1\ndef f(:\n", 2), ("  x = 1\n y = 2\n", 1), ("print 'hello'\n", 1)])
def test_a_syntax_error_is_refused_with_its_line(tmp_path, text, line):
    path = tmp_path / "broken.py"
    path.write_text(text)
    error = refusal(path)
    assert error.slug == "target-syntax"
    assert error.message.startswith(f"{path}:{line}: ")


def test_a_file_with_null_bytes_is_refused(tmp_path):
    path = tmp_path / "binary.py"
    path.write_bytes(b"x = 1\0\n")
    assert refusal(path).slug == "target-syntax"


def test_a_file_that_is_not_python_at_all_is_refused(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)))
    assert refusal(path).slug in ("target-syntax", "target-not-found")


@pytest.mark.parametrize(
    "text",
    [
        "model = nn.Linear(2, 1)\nmodel(torch.ones(2)).backward()\n",
        "def main():\n    loss.backward()\nif __name__ == '__main__':\n    main()\n",
        "trainer.fit(model)\n",
    ],
    ids=["on import", "under main", "fit"],
)
def test_a_training_script_is_refused_and_not_run(write, text):
    path = write(HEAD + "raise AssertionError('it was imported')\n" + text)
    error = refusal(path)
    assert error.slug == "target-is-a-script"


def test_a_file_with_a_contract_function_is_no_script_though_it_trains(write):
    text = WHOLE + "def main():\n    build_model()(torch.ones(2)).backward()\nif __name__ == '__main__':\n    main()\n"
    assert load_job(str(write(text))).name == "job"


@pytest.mark.parametrize("text", ["", "x = 1\n", BATCHES])
def test_a_file_without_a_model_is_refused(write, text):
    path = write(HEAD + text)
    error = refusal(path)
    assert error.slug == "target-no-model"
    assert error.message == f"{path} defines none of build_model, get_model, create_model, make_model, model"


def test_an_attribute_that_is_not_there_is_refused_by_name(write):
    path = write(WHOLE)
    error = refusal(f"{path}:missing")
    assert (error.slug, error.message) == ("target-no-model", f"{path} defines no `missing`")


def test_a_model_that_is_neither_module_nor_function_is_refused(write):
    error = refusal(write(HEAD + "build_model = 3\n" + BATCHES))
    assert error.slug == "target-no-model"
    assert "the model is int" in error.message


def test_a_model_function_that_returns_something_else_is_refused(write):
    job = load_job(str(write(HEAD + "def build_model():\n    return [nn.Linear(2, 1)]\n" + BATCHES)))
    with pytest.raises(UsageError, match="returned list, not a torch") as caught:
        job.start(0, 1)
    assert caught.value.slug == "target-no-model"


def test_a_file_without_batches_is_refused(write):
    path = write(HEAD + MODEL)
    error = refusal(path)
    assert error.slug == "target-no-batches"
    assert "train_batches" in error.hint


@pytest.mark.parametrize("returned", ["3", "None", "{'x': torch.ones(2)}"])
def test_batches_that_are_no_iterable_of_batches_are_refused(write, returned):
    job = load_job(str(write(HEAD + MODEL + f"def train_batches():\n    return {returned}\n")))
    with pytest.raises(UsageError) as caught:
        job.start(0, 1)
    assert caught.value.slug == "target-no-batches"


@pytest.mark.parametrize("batches", ["[]", "iter(())"])
def test_empty_batches_are_refused(write, batches):
    job = load_job(str(write(HEAD + MODEL + f"train_batches = {batches}\n")))
    with pytest.raises(UsageError) as caught:
        job.start(0, 1)
    assert caught.value.slug == "target-empty-batches"


# the user's own errors


RAISING = {
    "importing": ("def helper():\n    raise ValueError('bad data')\nhelper()\n" + WHOLE, lambda job: None),
    "building the model": (
        "def helper():\n    raise ValueError('bad data')\n" + WHOLE.replace("nn.Linear(2, 1)", "helper()"),
        lambda job: job.start(0, 1),
    ),
    "drawing batches": (
        "def helper():\n    raise ValueError('bad data')\n"
        + HEAD
        + MODEL
        + "def train_batches():\n    yield helper()\n",
        lambda job: job.start(0, 1),
    ),
    "computing the loss": (
        "def helper():\n    raise ValueError('bad data')\n"
        + HEAD
        + MODEL
        + BATCHES
        + "def compute_loss(m, b):\n    helper()\n",
        one_step,
    ),
}


@pytest.mark.parametrize("doing", RAISING)
def test_what_the_users_code_raises_shows_their_frames_and_none_of_ours(write, doing):
    text, use = RAISING[doing]
    path = write(text)
    with pytest.raises(UserCodeError) as caught:
        use(load_job(str(path)))
    error = caught.value
    assert error.slug == "user-code"
    assert error.message.startswith(f"ValueError while {doing}")
    assert error.message.endswith(": bad data")
    assert error.placed == f"{error.message}, at {path}:2"
    assert f'File "{path}", line 2, in helper' in error.traceback
    assert error.traceback.rstrip().endswith("ValueError: bad data")
    package = str(Path(sys.modules["mpdiag.target"].__file__).parents[1])
    assert package not in error.traceback
    assert "importlib" not in error.traceback


def test_a_target_that_exits_is_the_users_error(write):
    error = refusal(write("import sys\nsys.exit(3)\n" + WHOLE))
    assert isinstance(error, UserCodeError)
    assert "sys.exit()" in error.hint


def test_ctrl_c_in_a_target_passes_through(write):
    with pytest.raises(KeyboardInterrupt):
        load_job(str(write("raise KeyboardInterrupt\n" + WHOLE)))


def test_a_file_that_failed_to_import_is_read_anew_the_next_time(write):
    path = write("raise ValueError('first')\n" + WHOLE)
    refusal(path)
    path = write(WHOLE)
    assert load_job(str(path)).name == "job"


# one seed, one start


RANDOM = HEAD + MODEL + LOSS + "def train_batches():\n    return [torch.randn(4, 2) for _ in range(3)]\n"


def test_the_same_seed_gives_the_same_weights_and_batches(write):
    path = write(RANDOM)
    one, two = load_job(str(path)).start(5, 3), load_job(str(path)).start(5, 3)
    assert all(torch.equal(one.weights[key], two.weights[key]) for key in one.weights)
    assert all(torch.equal(a, b) for a, b in zip(one.batches, two.batches, strict=True))


def test_different_seeds_give_different_weights_and_batches(write):
    job = load_job(str(write(RANDOM)))
    one, two = job.start(5, 3), job.start(6, 3)
    assert not torch.equal(one.weights["weight"], two.weights["weight"])
    assert not torch.equal(one.batches[0], two.batches[0])


def test_a_seed_asked_for_again_gives_the_same_start(write):
    job = load_job(str(write(RANDOM)))
    first = job.start(5, 3)
    job.start(6, 3)
    again = job.start(5, 3)
    assert torch.equal(first.weights["weight"], again.weights["weight"])
    assert all(torch.equal(a, b) for a, b in zip(first.batches, again.batches, strict=True))


def test_asking_for_more_batches_keeps_the_first_ones(write):
    job = load_job(str(write(RANDOM)))
    few = job.start(5, 1).batches
    more = job.start(5, 3).batches
    assert (len(few), len(more)) == (1, 3)
    assert torch.equal(few[0], more[0])


def test_python_and_numpy_are_seeded_too(write):
    text = "import random\nimport numpy as np\n" + HEAD + MODEL + LOSS
    text += "def train_batches():\n    return [torch.tensor([random.random(), np.random.rand()])]\n"
    job = load_job(str(write(text)))
    one, other = job.start(5, 1).batches[0], job.start(6, 1).batches[0]
    again = job.start(5, 1).batches[0]
    assert torch.equal(one, again)
    assert (one != other).all()


def test_every_build_has_the_starts_weights_in_training_mode(write):
    job = load_job(str(write(RANDOM)))
    start = job.start(5, 1)
    model = job.build(start, CPU)
    model.weight.data.zero_()
    again = job.build(start, CPU)
    assert torch.equal(again.weight, start.weights["weight"])
    assert again.training


def test_every_build_leaves_the_random_state_of_its_seed(write):
    job = load_job(str(write(RANDOM)))
    start = job.start(5, 1)
    job.build(start, CPU)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


# nested batches


@dataclasses.dataclass
class Pair:
    x: torch.Tensor
    rest: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    name: str = "name"


class Encoding:
    """As transformers' BatchEncoding: a mapping in .data and a .to of its own."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def to(self, device: Any) -> Encoding:
        raise AssertionError("not called")


def double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


def test_a_dict_of_lists_and_tuples_is_mapped_in_its_shape():
    batch = {"a": [torch.tensor(1.0), 5], "b": (torch.tensor(2.0), "text", None)}
    mapped = map_tensors(double, batch)
    assert (mapped["a"][0].item(), mapped["a"][1]) == (2.0, 5)
    assert (mapped["b"][0].item(), mapped["b"][1:]) == (4.0, ("text", None))
    assert isinstance(mapped["b"], tuple)


def test_a_dataclass_is_mapped_into_a_new_one():
    batch = Pair(torch.tensor(1.0), {"y": torch.tensor(3.0)})
    mapped = map_tensors(double, batch)
    assert isinstance(mapped, Pair)
    assert (mapped.x.item(), mapped.rest["y"].item()) == (2.0, 6.0)
    assert (batch.x.item(), batch.rest["y"].item()) == (1.0, 3.0)


def test_a_frozen_dataclass_in_a_list_is_mapped():
    (mapped,) = map_tensors(double, [Frozen(torch.tensor(1.0))])
    assert (mapped.x.item(), mapped.name) == (2.0, "name")


def test_a_packed_sequence_stays_one_and_keeps_its_lengths():
    packed = pack_sequence([torch.ones(2, 3), torch.ones(4, 3)], enforce_sorted=False)
    mapped = map_tensors(lambda t: t.half() if t.is_floating_point() else t, (packed, torch.ones(1)))[0]
    assert isinstance(mapped, PackedSequence)
    assert mapped.data.dtype == torch.float16
    assert torch.equal(mapped.batch_sizes, packed.batch_sizes)
    assert torch.equal(mapped.unsorted_indices, packed.unsorted_indices)


def test_an_object_that_keeps_a_mapping_is_copied_with_its_tensors_mapped():
    batch = Encoding({"ids": torch.tensor([1]), "nested": {"mask": torch.tensor([3])}})
    mapped = map_tensors(double, batch)
    assert isinstance(mapped, Encoding)
    assert (mapped.data["ids"].item(), mapped.data["nested"]["mask"].item()) == (2, 6)
    assert batch.data["ids"].item() == 1


def test_an_object_with_a_to_method_and_tensor_attributes_is_copied():
    class Graph:
        def __init__(self) -> None:
            self.x, self.edges, self.n = torch.tensor([1.0]), torch.tensor([2]), 3

        def to(self, device: Any) -> Graph:
            raise AssertionError("not called")

    batch = Graph()
    mapped = map_tensors(double, batch)
    assert (mapped.x.item(), mapped.edges.item(), mapped.n) == (2.0, 4, 3)
    assert batch.x.item() == 1.0


def test_a_namedtuple_keeps_its_type():
    import collections

    Point = collections.namedtuple("Point", "x y")
    mapped = map_tensors(double, Point(torch.tensor(1.0), 2))
    assert type(mapped) is Point
    assert (mapped.x.item(), mapped.y) == (2.0, 2)


def test_arrays_are_copied_and_other_leaves_are_passed_through():
    array, other = np.ones(3), object()
    mapped = map_tensors(double, [array, {"y": array}, "x", other])
    mapped[0][0] = 7  # the user's code may write into it
    assert (array.tolist(), mapped[1]["y"].tolist()) == ([1.0] * 3, [1.0] * 3)
    assert mapped[2:] == ["x", other]


def test_a_source_that_reuses_one_array_gives_batches_of_their_own():
    def source() -> Any:
        array = np.zeros(2)
        for i in range(3):
            array[:] = i
            yield {"x": array}

    assert [batch["x"].tolist() for batch in draw(source(), 3, 2**20)[0]] == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


def test_a_loss_that_writes_into_its_array_finds_the_batch_as_it_was_in_the_next_run(write):
    text = HEAD + "import numpy as np\n" + MODEL
    text += "def train_batches():\n    return [(torch.ones(4, 2), np.ones(1))]\n"
    text += (
        "def compute_loss(model, batch):\n    batch[1][0] *= 3\n    return model(batch[0]).mean() * 0 + batch[1][0]\n"
    )
    job = load_job(str(write(text)))
    start = job.start(0, 2)
    seen = []
    for _ in range(2):
        with open_session(job, start, FP32_IEEE, CPU) as run:
            seen += [run.step(run.place(start.batch(step)))[ONLY].item() for step in range(2)]
    assert seen == [3.0] * 4


def test_a_module_is_no_batch_of_tensors():
    assert list(tensors_in(nn.Linear(1, 1))) == []


def test_an_object_that_holds_itself_is_entered_once():
    class Node:
        def __init__(self) -> None:
            self.x, self.parts = torch.ones(1), [self]

    assert len(list(tensors_in(Node()))) == 1


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.ones(2), 1),
        ([torch.ones(2), {"a": torch.ones(3)}, 4, "x", None], 2),
        (Pair(torch.ones(2), {"y": torch.ones(1), "z": [torch.ones(1)]}), 3),
        (pack_sequence([torch.ones(2, 3)]), 1),
        (Encoding({"ids": torch.ones(1), "mask": torch.ones(1)}), 2),
        ("nothing", 0),
    ],
    ids=["tensor", "list", "dataclass", "packed", "object", "text"],
)
def test_tensors_in_finds_every_tensor(batch, count):
    assert len(list(tensors_in(batch))) == count


def test_bytes_and_samples_are_those_of_the_tensors():
    batch = {"scalar": torch.tensor(1.0), "x": torch.ones(5, 2), "y": torch.ones(5, dtype=torch.int64)}
    assert bytes_of(batch) == 4 + 40 + 40
    assert samples_in(batch) == 5
    assert samples_in(["nothing"]) is None


@pytest.mark.parametrize(
    ("batch", "loss"),
    [
        ("{'x': torch.ones(4, 2)}", "model(batch['x']).mean()"),
        ("(torch.ones(4, 2), 'label')", "model(batch[0]).mean()"),
        ("Batch(torch.ones(4, 2))", "model(batch.x).mean()"),
        ("torch.nn.utils.rnn.pack_sequence([torch.ones(3, 2)])", "model(batch.data).mean()"),
    ],
    ids=["dict", "tuple", "dataclass", "packed"],
)
def test_a_job_trains_on_batches_of_any_nesting(write, batch, loss):
    text = "import dataclasses\n" + HEAD + "@dataclasses.dataclass\nclass Batch:\n    x: torch.Tensor\n" + MODEL
    text += f"def train_batches():\n    return [{batch}]\ndef compute_loss(model, batch):\n    return {loss}\n"
    assert one_step(load_job(str(write(text))))[ONLY].isfinite()


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
