"""Batches of several sizes: what is counted a sample takes the mean of those that rotate, and says so."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch

from fake_nvml import AT_REST, CUDA, install
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.measure.energy import energy_from, windows_of_arms
from mpdiag.measure.fleet import open_fleet
from mpdiag.measure.steady import SteadyRun, steady_run
from mpdiag.measure.timing import time_arms
from mpdiag.report.html_speed import _row, _setup
from mpdiag.target import load_job
from mpdiag.target.job import Job
from mpdiag.training.precision import FP32_IEEE

CPU = torch.device("cpu")
MODEL = """
import torch
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(n, 4), torch.randn(n, 1)) for n in SIZES]
def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


def job(tmp_path, *sizes: int) -> Job:
    (tmp_path / "model.py").write_text(MODEL.replace("SIZES", str(sizes)))
    return load_job(str(tmp_path / "model.py"))


def sizes_of(*shapes: tuple[int, ...], batch_dim: int = 0) -> tuple[tuple[int, ...], int | float | None]:
    run = SteadyRun(None, [torch.zeros(shape) for shape in shapes], batch_dim)  # type: ignore[arg-type] # unused
    return run.batch_sizes, run.samples


def test_the_samples_of_a_step_are_the_mean_over_the_batches_that_rotate():
    assert sizes_of((32, 5), (32, 5), (4, 5)) == ((32, 32, 4), pytest.approx(68 / 3))
    assert sizes_of((7, 32), (9, 4), batch_dim=1) == ((32, 4), 18.0)


def test_batches_of_one_size_have_a_whole_number_of_samples_as_ever():
    sizes, samples = sizes_of((32, 5), (32, 9))
    assert (sizes, samples, type(samples)) == ((32, 32), 32, int)


def test_a_batch_whose_size_nobody_tells_leaves_it_unknown():
    assert sizes_of((32, 5), ()) == ((), None)


def test_the_timing_keeps_the_mean_and_the_sizes_only_where_they_differ(tmp_path):
    for sizes, samples, kept in (((32, 32, 4), 68 / 3, (32, 32, 4)), ((32, 32), 32, ())):
        made = job(tmp_path, *sizes)
        with open_fleet(made, made.start(0, len(sizes)), {"fp32": FP32_IEEE}, CPU) as fleet:
            found = time_arms(fleet, 0.1)
        assert (found.samples, found.batch_sizes) == (pytest.approx(samples), kept)
        assert found.first_samples == 32


def test_joules_a_sample_are_of_the_mean_batch_and_the_note_says_so(tmp_path, monkeypatch):
    fake = install(monkeypatch)
    fake.watts, fake.values = 70.0, AT_REST
    made = job(tmp_path, 32, 32, 4)

    @contextmanager
    def in_force_again():
        fake.watts = 1000.0
        yield lambda: fake.spend(0.02)  # 20 J a step
        fake.watts = 70.0

    with steady_run(made, made.start(0, 3), FP32_IEEE, CPU, 0) as run:
        run.in_force_again = in_force_again
        windows = windows_of_arms(("fp32",), lambda name: nullcontext(run), CUDA, 5.0, 3)
    (found,) = energy_from(windows)
    assert found.joules_per_sample == pytest.approx(20 * 3 / 68, rel=0.03)  # 0.882 J; 0.625 by the first batch
    assert found.note == "the batches differ, of 4 to 32 samples: a sample is counted by their mean of 22.67 a step"
    assert found.samples == round(sum(window.block.steps for window in windows.arms["fp32"]) * 68 / 3)


ARM = ArmTime("fp32", "FP32", 50.0, (49.0, 51.0), 40.0, (50.0,) * 3, 30)
EVEN = Timing((ARM,), ARM, 32, 3, True, 1.0)
UNEVEN = replace(EVEN, samples=68 / 3, batch_sizes=(32, 32, 4))


def test_samples_a_second_are_over_the_mean_step_where_the_median_one_is_of_another_size(monkeypatch):
    monkeypatch.setattr("mpdiag.report.html_speed.ratio_of", lambda *given: None)
    shown = [str(_row(None, each, ARM, (), None, ()).samples_per_second) for each in (EVEN, UNEVEN)]
    assert shown == ["640", "567"]  # 32 in the median 50 ms; 22.67 in the mean 40 ms


def test_the_setup_counts_in_words():
    assert _setup(EVEN).startswith("3 rounds in which every arm has one block, in turns, batches of 32 samples, all")
    one = _setup(replace(EVEN, samples=1, rounds=1))
    assert one.startswith("1 round in which every arm has one block, in turns, batches of 1 sample, all arms")
    several = "in turns, batches of 4 to 32 samples, all arms in memory at once. Samples/s are the mean batch of 22.67"
    assert several in _setup(UNEVEN)
