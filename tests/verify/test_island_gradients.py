"""Islands for the sake of gradients: a range that no scale serves, and gradients that are zero in FP16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from island_samples import CPU, PLAN, captured, filled, job, searched
from mpdiag.advice.islands import gradient_candidates
from mpdiag.diagnosis import Advice, Capture, TensorKind
from mpdiag.foretold import Prediction
from mpdiag.target.job import ONLY, Job
from mpdiag.verify import island_gradients
from mpdiag.verify.island_gradients import dead_gradients, with_live_gradients
from mpdiag.verify.island_search import islands_wanted
from mpdiag.verify.island_trial import IslandTrials, OutOfTimeError
from mpdiag.verify.prediction import compare_with_fp16

# gradients


class TwoEnds(nn.Module):
    """Two branches with a loss each, one as large as 2^14, the other as small as 2^-34: no scale serves both."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = filled(4, 1, 0.25), filled(4, 1, 0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.large(x).float().sum() * 2.0**12 + self.small(x).float().sum() * 2.0**-36


def two_ends() -> Job:
    def losses(model: Any, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, model(batch)

    return job(TwoEnds, lambda: [torch.ones(1, 4)], losses)


def test_a_range_conflict_is_cured_by_one_end():
    capture, advice = captured(two_ends())
    assert "MP204" in [f.code for f in advice.findings]
    assert gradient_candidates(capture, advice.loss_scale)[0] in ("large", "small")
    found = searched(two_ends())
    assert found.keep_fp32 in (("large",), ("small",))
    assert (found.enough, found.minimal) == (True, True)
    assert found.log2_scale is not None


# once more, after FP16 was counted


class Deaf(nn.Module):
    """Between `a` and `b` gradients pass 2^-14 of themselves, so that at the scale that `large` bears none comes."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.a, self.b = filled(4, 1, 2.0**-4), filled(4, 4, 2.0**-4), filled(4, 1, 2.0**-4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b((self.a(x) * 2.0**14) * 2.0**-14)
        return (self.large(x).float() * 2.0**10 + y.float() * 2.0**-6).sum()


def deaf() -> tuple[Job, Capture, Advice, Prediction]:
    def losses(model: Any, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, model(batch)

    the_job = job(Deaf, lambda: [torch.ones(8, 4)], losses)
    capture, advice = captured(the_job)
    k = advice.loss_scale.log2_scale
    types = {(t.kind, t.name): t.amp_dtype for t in capture.tables}
    return the_job, capture, advice, compare_with_fp16(the_job, the_job.start(0, 3), CPU, types, (k,), 1)


def test_a_gradient_that_is_zero_in_fp16_starts_a_search_once_more():
    the_job, capture, advice, prediction = deaf()
    k = advice.loss_scale.log2_scale
    assert not islands_wanted(capture, advice)  # the counts of FP32 do not show it
    assert set(dead_gradients(prediction, k)) == {("activation_gradient", "a"), ("weight_gradient", "a.weight")}
    found = with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, advice, prediction, 1e6, print)
    assert found.keep_fp32 == found.plan.keep_fp32 == ("a",)  # its output stays in FP32, and so does what lies between
    assert (found.plan.enough, found.plan.minimal) == (True, True)
    types = {(t.kind, t.name): t.amp_dtype for t in capture.tables}
    assert types[TensorKind.ACTIVATION_GRADIENT, "a"] == "float16"


def test_where_every_gradient_lives_the_advice_stays_as_it_is():
    the_job, capture, advice, prediction = deaf()
    alive = replace(prediction, tensors=tuple(replace(t, observed_underflow=0.9) for t in prediction.tensors))
    late = replace(prediction, tensors=tuple(replace(t, trained_steps=3) for t in prediction.tensors))
    for each in (alive, late, None):
        assert with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, advice, each, 1e6, print) is advice


def test_a_search_for_live_gradients_that_runs_out_of_time_says_so(monkeypatch):
    the_job, capture, advice, prediction = deaf()

    def never(self: IslandTrials, names: tuple[str, ...]) -> Any:
        raise OutOfTimeError

    monkeypatch.setattr(IslandTrials, "run", never)
    found = with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, advice, prediction, 2.0, print)
    assert (found.plan.enough, found.plan.keep_fp32, found.keep_fp32) == (False, (), advice.keep_fp32)
    assert found.plan.reason == "a gradient stays zero: the time budget of 2 s ended"
    planned = replace(advice, plan=PLAN)
    assert with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, planned, prediction, 2.0, print) is planned


def test_a_set_that_keeps_gradients_alive_is_no_dead_gradient_when_the_time_ends_after_it(monkeypatch):
    the_job, capture, advice, prediction = deaf()
    real, wanted = IslandTrials.run, iter(("b", "a"))

    def twice(self: IslandTrials, names: tuple[str, ...]) -> Any:
        if names == ("b",) and self.iterations > 1:  # to leave `a` out again
            raise OutOfTimeError
        return real(self, names)

    monkeypatch.setattr(IslandTrials, "run", twice)
    monkeypatch.setattr(island_gradients._Search, "_next", lambda *_: next(wanted))
    found = with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, advice, prediction, 60.0, print)
    assert (found.plan.enough, found.plan.minimal, found.plan.keep_fp32) == (True, False, ("a", "b"))
    assert found.plan.reason == "it is not shown that none can be left out: the time budget of 60 s ended"
