"""The observed run: exact tables of a model known on paper, the names chosen, and which gradients are noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpdiag.histogram import ExponentHistogram
from mpdiag.target.job import Job
from tiny_job_samples import AG, WG, WU, A, W, bins, capture, constant, job, linear_job, mean_of_all, tables


def test_a_linear_gives_exactly_five_tables_in_the_order_seen():
    found = [(table.kind, table.name) for table in capture(linear_job()).tables]
    assert found == [(A, "0"), (AG, "0"), (WG, "0.weight"), (W, "0.weight"), (WU, "0.weight")]


@pytest.mark.parametrize(
    ("key", "expected", "largest", "smallest"),
    [
        ((A, "0"), {1: 1, 2: 1}, 5.0, 2.5),
        ((AG, "0"), {0: 2}, 1.0, 1.0),
        ((W, "0.weight"), {-1: 2}, 0.5, 0.5),
        ((WG, "0.weight"), {1: 1, 3: 1}, 12.0, 3.0),
        ((WU, "0.weight"), {-1: 1, 1: 1}, 3.0, 0.75),
    ],
    ids=["activation", "activation_gradient", "weight", "weight_gradient", "weight_update"],
)
def test_each_table_of_a_linear_is_the_one_worked_out_on_paper(key, expected, largest, smallest):
    table = tables(linear_job())[key]
    assert table.histogram == ExponentHistogram.from_bins(expected)
    assert (table.abs_max, table.abs_min, table.abs_max_by_step) == (largest, smallest, (largest,))
    assert (table.module_type, table.dtype, table.elements, table.steps) == ("Linear", "float32", 2, 1)


def test_only_the_update_says_how_much_of_it_is_stagnant():
    found = tables(linear_job())
    assert {key[0] for key, table in found.items() if table.stagnant is not None} == {WU}
    assert found[WU, "0.weight"].stagnant == {"FP16": 0.0, "BF16": 0.0}


def test_an_update_of_2_to_minus_11_next_to_a_half_stagnates_in_bf16_only():
    # ulp of 0.5 from below: 2^-12 in FP16, 2^-9 in BF16
    table = tables(job(lambda: constant(nn.Linear(1, 1, bias=False)), torch.ones(1, 1), lr=2.0**-11))
    assert table[WU, "weight"].stagnant == {"FP16": 0.0, "BF16": 1.0}


def test_a_second_step_is_added_to_the_first():
    # gradients are the same again; weights go from 0.5 to -0.25 and -2.5
    found = tables(linear_job(), steps=2)
    assert bins(found[WG, "0.weight"]) == {1: 2, 3: 2}
    assert bins(found[W, "0.weight"]) == {-2: 1, -1: 2, 1: 1}
    # outputs of the second step: -0.25 - 10 and -0.5 - 20
    assert found[A, "0"].abs_max_by_step == (5.0, 20.5)
    assert (found[A, "0"].elements, found[A, "0"].steps, found[A, "0"].histogram.total) == (2, 2, 4)


def test_the_losses_are_those_of_the_run():
    assert capture(linear_job(), steps=2).losses == (7.5, -30.75)


def test_the_capture_says_what_it_ran():
    record = capture(linear_job(), steps=2)
    assert (record.precision, record.device, record.steps, record.seed) == ("FP32 (IEEE)", "cpu", 2, 0)
    assert record.input_abs_max == 8.0


def test_zeros_are_counted_apart():
    found = tables(job(lambda: nn.Sequential(nn.ReLU(), constant(nn.Linear(1, 1))), torch.tensor([[-1.0], [4.0]])))
    assert found[A, "0"].histogram == ExponentHistogram.from_bins({2: 1}, zeros=1)


def test_the_source_is_the_users_line():
    table = tables(linear_job())[A, "0"]
    file, _, line = table.source.rpartition(":")
    assert file.endswith("tiny_job_samples.py")
    assert int(line) == mean_of_all.__code__.co_firstlineno + 2


# include and exclude


def two_layers() -> Job:
    return job(lambda: constant(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ({"include": ("1*",)}, {"1", "1.weight", "1.bias"}),
        ({"exclude": ("*.bias", "0*")}, {"1", "1.weight"}),
        ({"include": ("0*", "1"), "exclude": ("0.*",)}, {"0", "1"}),
        ({"include": ("nothing",)}, set()),
        ({}, {"0", "1", "0.weight", "0.bias", "1.weight", "1.bias"}),
    ],
    ids=["include", "exclude", "both", "none match", "no pattern"],
)
def test_patterns_choose_the_names_counted(patterns, names):
    assert {name for _, name in tables(two_layers(), **patterns)} == names


# noise


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))


def test_the_bias_before_a_batch_norm_is_marked_as_noise_and_no_other():
    the_job = job(norm_net, lambda: torch.randn(16, 2, 6, 6), lambda m, b: m(b).pow(2).mean())
    found = tables(the_job, steps=2)
    assert {name for (kind, name), table in found.items() if table.noise_level} == {"0.bias"}
    assert not found[WG, "1.bias"].noise_level
    assert not found[WG, "3.bias"].noise_level


def test_an_ordinary_bias_in_front_of_a_linear_is_not_noise():
    model = lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    found = tables(job(model, lambda: torch.randn(64, 4), lambda m, b: m(b).pow(2).mean()))
    assert not any(table.noise_level for table in found.values())
