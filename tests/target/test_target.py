"""How a training job gets in: every name and form of the contract, its batches, and one start for every run."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from mpdiag.target import load_job
from mpdiag.target.batches import draw
from mpdiag.target.job import ONLY
from target_samples import BATCHES, CPU, HEAD, LOSS, MODEL, WHOLE, one_step

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
