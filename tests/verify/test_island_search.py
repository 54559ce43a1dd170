"""The search for the fewest FP32 islands that make a job work in FP16, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from island_samples import CPU, captured, filled, job, searched
from mpdiag.advice.islands import overflowing_layers
from mpdiag.target.job import ONLY
from mpdiag.verify.island_search import IslandSearch, islands_wanted, with_islands
from mpdiag.verify.island_trial import IslandTrials, OutOfTimeError, plain_fp16

# --- the search


class Ten(nn.Module):
    """Ten layers in a row that keep ones as they are; two of them go through 90000 and come back."""

    def __init__(self, hot: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([filled(2, 2, 45000.0 if i in hot else 0.5) for i in range(10)])
        self.hot = hot

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.hot:
                x = x / 90000.0
        return x


def test_of_ten_layers_the_two_that_overflow_are_the_plan():
    found = searched(job(lambda: Ten((3, 7)), lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("layers.3", "layers.7")
    assert (found.enough, found.minimal, found.reason, found.emulated) == (True, True, None, True)
    assert found.iterations == 1  # the tables prove both


def test_a_job_that_fits_needs_no_search():
    the_job = job(lambda: Ten(()), lambda: [torch.ones(1, 2)])
    capture, advice = captured(the_job)
    assert islands_wanted(capture, advice) is False
    assert with_islands(the_job, the_job.start(0, 3), CPU, capture, advice, 1e6, lambda line: None) is advice


class Between(nn.Module):
    """A square of 300 between two layers of one child: 90000 inside its own forward, seen by no module's hook."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = filled(2, 2, 150.0), filled(2, 2, 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.before(x)
            return self.after(y * y) / 90000.0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = filled(2, 2, 0.5), Between.Norm(), filled(2, 2, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def test_an_overflow_between_modules_takes_the_parent_that_computes_it():
    found = searched(job(Between, lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("norm",)
    assert (found.enough, found.minimal) == (True, True)


class InsideOut(nn.Module):
    """The overflow is in the model's own forward, between its children."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = filled(2, 2, 150.0), filled(2, 2, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.b(y * y)


def test_where_only_the_whole_model_would_do_there_is_no_plan_and_the_tables_names_stay():
    the_job = job(InsideOut, lambda: [torch.ones(1, 2)])
    capture, advice = captured(the_job)
    found = with_islands(the_job, the_job.start(0, 3), CPU, capture, advice, 1e6, lambda line: None)
    assert found.plan.enough is False
    assert found.plan.reason == "nothing is left to keep in FP32 but the whole model"
    assert found.keep_fp32 == advice.keep_fp32
    assert found.plan.snippet is None


class Stream(nn.Module):
    """The layer that overflows feeds another: its FP32 output does not survive the next one's cast to FP16."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.last = filled(2, 2, 45000.0), filled(2, 2, 1e-5), filled(2, 2, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.down(self.up(x)))


def test_the_reader_of_an_overflowing_output_joins_the_plan():
    found = searched(job(Stream, lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("up", "down")
    assert (found.enough, found.minimal) == (True, True)


def test_what_a_parent_covers_is_not_named_beside_it():
    class Both(Between.Norm):
        def __init__(self) -> None:
            super().__init__()
            self.hot = filled(2, 2, 45000.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.hot(x) / 90000.0 + super().forward(x)

    found = searched(job(lambda: nn.Sequential(filled(2, 2, 0.5), Both()), lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("1",)  # "1.hot" was taken first, as the tables prove that it overflows
    assert (found.enough, found.minimal, found.iterations) == (True, True, 2)


class Copies(nn.Module):
    """Three dropout-like modules without weights, each 90000 from what is just below FP16's end."""

    def __init__(self) -> None:
        super().__init__()
        self.up = filled(2, 2, 15000.0)
        self.thrice = Thrice()
        self.down = nn.LayerNorm(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.thrice(self.up(x)) * torch.tensor([1.0, 2.0]))


class Thrice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3.0


def test_a_module_without_weights_is_taken_alone():
    found = searched(job(Copies, lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("thrice",)
    assert (found.enough, found.minimal) == (True, True)


def test_a_weight_beyond_fp16_is_proven_by_the_tables():
    the_job = job(lambda: nn.Sequential(filled(1, 1, 70000.0), nn.LayerNorm(1)), lambda: [torch.full((1, 1), 1e-3)])
    capture, _ = captured(the_job)
    assert overflowing_layers(capture) == ("0",)
    assert searched(the_job).keep_fp32 == ("0",)


def test_modules_near_the_limit_are_named_but_not_kept():
    model = lambda: nn.ModuleDict({"hot": filled(1, 1, 90000.0 / 300), "warm": filled(1, 1, 40000.0)})

    def losses(model: Any, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        y = model["hot"](batch) / 90000.0
        yield ONLY, (model["warm"](y) / 40000.0).float().mean()

    found = searched(job(model, lambda: [torch.full((1, 1), 300.0)], losses))
    assert (found.keep_fp32, found.near_limit) == (("hot",), ("warm",))


def test_where_fp16_itself_fails_nothing_is_searched():
    def losses(model: Any, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, nn.functional.binary_cross_entropy(model(batch).sigmoid(), torch.ones(1, 1))

    found = searched(job(lambda: nn.Sequential(filled(1, 1, 1.0)), losses=losses))
    assert (found.iterations, found.enough) == (0, False)
    assert found.reason.startswith("an FP16 iteration fails: ")


class Scripted(IslandSearch):
    """FP16 works as soon as b and d are islands; a to e are proposed in turn."""

    def _works(self, trial: Any) -> bool:
        return {"b", "d"} <= set(trial.names)

    def _next(self, trial: Any) -> str:
        return "abcde"[len(trial.names)]


class NoTrials(IslandTrials):
    """Trials that run nothing and stop after a number of them."""

    limit = 100

    def _iterate(self, names: tuple[str, ...]) -> Any:
        if self.iterations == self.limit:
            raise OutOfTimeError
        self.iterations += 1
        return replace(self.plain, names=names)


def scripted(limit: int) -> Scripted:
    the_job = job(lambda: Ten(()), lambda: [torch.ones(1, 2)])
    plain = plain_fp16(*captured(the_job))
    trials = NoTrials(the_job, the_job.start(0, 3), CPU, plain, 5.0, False, lambda line: None)
    trials.limit = limit
    search = Scripted(trials, "Ten")
    search.run()
    return search


def test_what_was_added_and_is_not_needed_is_left_out_again():
    search = scripted(100)
    assert (search.found.names, search.enough, search.minimal, search.reason) == (("b", "d"), True, True, None)
    assert search.trials.iterations == 4 + 4  # a, ab, abc, abcd work; then each is left out once


@pytest.mark.parametrize(
    ("limit", "names", "said"),
    [
        (3, (), "no set was found: the time budget of 5 s ended after 3 iteration(s)"),
        (4, ("a", "b", "c", "d"), "it is not shown that none can be left out: the time budget of 5 s ended after 4"),
        (6, ("a", "b", "d"), "it is not shown that none can be left out: the time budget of 5 s ended after 6"),
    ],
)
def test_a_search_that_is_cut_keeps_the_best_it_has_shown(limit, names, said):
    search = scripted(limit)
    assert (search.found.names, search.enough, search.minimal) == (names, bool(names), False)
    assert search.reason.startswith(said)


def test_a_layer_that_cannot_be_an_island_ends_the_search_and_says_why():
    model = lambda: nn.Sequential(filled(1, 1, 70000.0).bfloat16(), nn.LayerNorm(1, dtype=torch.bfloat16))
    found = searched(job(model, lambda: [torch.ones(1, 1, dtype=torch.bfloat16)]))
    assert (found.keep_fp32, found.enough) == (("0",), False)
    assert "'0' holds bfloat16 parameters, so it cannot compute in FP32" in found.reason


# time


def test_a_search_out_of_time_keeps_what_it_has_and_says_so():
    found = searched(job(Stream, lambda: [torch.ones(1, 2)]), budget=1e-9)
    assert found.iterations == 1  # one is always tried
    assert (found.enough, found.minimal, found.keep_fp32) == (False, False, ())
    assert found.reason == "no set was found: the time budget of 1e-09 s ended after 1 iteration(s)"
