"""Which modules the search takes for what loses too much, for an operation that overflows, and as parents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from island_samples import CPU, captured, filled, job, searched
from mpdiag.advice import advise
from mpdiag.diagnosis import Advice, Finding
from mpdiag.histogram import ExponentHistogram
from mpdiag.operations import OpRole, OpTable
from mpdiag.verify.island_search import islands_wanted, search_islands
from mpdiag.verify.island_trial import plain_fp16

# what loses too much


class Faint(nn.Module):
    """`down` gives 2^-26 and less, which FP16 has not; `up` would read it well if it were given it."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.down, self.up, self.last = filled(2, 100, 2.0**-20), filled(100, 100, 2.0**10), filled(100, 2, 1.0)
        with torch.no_grad():
            self.down.weight[int(100 * share) :] = 2.0**-14

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.up(self.down(x)))


FAINT = lambda: [torch.full((4, 2), 2.0**-7)]


def test_activations_that_become_zero_in_fp16_start_a_search_and_their_reader_joins():
    the_job = job(Faint, FAINT)
    capture, advice = captured(the_job)
    assert "MP105" in [f.code for f in advice.findings]
    plain = plain_fp16(replace(capture, amp_vanished=()), replace(advice, findings=tuple(_only(advice, "MP105"))))
    assert plain.losing == ["down"]
    assert islands_wanted(plain.capture, plain.advice)
    found = searched(the_job)
    assert found.enough
    assert {"down", "up"} <= set(found.keep_fp32)  # alone, `down` would be flushed in the cast of what it gives


def _only(advice: Advice, code: str) -> Iterator[Finding]:
    return (f for f in advice.findings if f.code == code)


def test_a_loss_that_carries_nothing_of_the_norm_starts_no_search():
    capture, advice = captured(job(lambda: Faint(0.5), FAINT))
    lost = next(_only(advice, "MP105"))
    assert lost.evidence["energy_lost"] < 0.01
    assert plain_fp16(capture, advice).losing == []


def test_an_operation_that_overflows_is_lifted_by_the_island_that_holds_it():
    model = lambda: nn.Sequential(filled(2, 2, 0.5), nn.Sequential(filled(2, 2, 0.5)), filled(2, 2, 0.5))
    the_job = job(model, lambda: [torch.ones(1, 2)])
    capture, _ = captured(the_job)
    counts = ExponentHistogram(16, (2,))
    square = OpTable("mul", "1", "forward", OpRole.OUTPUT, "float32", 2, 1, counts, 9e4, 9e4, amp_dtype="float16")
    seen = replace(capture, operations=(square,))
    advice = advise(seen)
    assert [f.code for f in advice.findings if f.severity == "error"] == ["MP110"]
    assert islands_wanted(seen, advice)
    found = search_islands(the_job, the_job.start(0, 3), CPU, seen, advice, 1e6)
    assert (found.keep_fp32, found.enough) == (("1",), True)


# parents


class Twins(nn.Module):
    """Two layers of one module that both overflow, beside one that does not."""

    class Pair(nn.Module):
        def __init__(self, beside: int) -> None:
            super().__init__()
            self.a, self.b = filled(2, 2, 45000.0), filled(2, 2, 45000.0)
            self.beside = filled(2, beside, 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x) / 90000.0
            return self.b(y) / 90000.0 + self.beside(x).mean()

    def __init__(self, beside: int) -> None:
        super().__init__()
        self.first, self.pair, self.last = filled(2, 2, 0.5), Twins.Pair(beside), filled(2, 2, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.pair(self.first(x)))


@pytest.mark.parametrize(("beside", "names"), [(2, ("pair",)), (40, ("pair.a", "pair.b"))])
def test_the_parent_takes_the_place_of_children_that_hold_most_of_its_weights(beside, names):
    found = searched(job(lambda: Twins(beside), lambda: [torch.ones(1, 2)]))
    assert (found.keep_fp32, found.enough, found.minimal) == (names, True, True)
