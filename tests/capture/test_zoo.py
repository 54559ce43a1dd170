"""A zoo of training jobs: not a bit changes when they are looked at, and what is counted is what a witness recorded."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.capture.probe import Probe
from mpdiag.capture.selftest import run_selftest
from mpdiag.diagnosis import SelfTest
from mpdiag.histogram import ExponentHistogram
from mpdiag.target import load_job
from zoo_paper_samples import AG, LOOPS, TARGETS, WG, WU, ZOO, A
from zoo_samples import CPU, HERE, _built, _module, _path, differing, on_paper, plain, probed, recorded, wrong_fields

once = functools.lru_cache(maxsize=None)
plain_once, probed_once, recorded_once = once(plain), once(probed), once(recorded)


@pytest.fixture(scope="module", params=ZOO)
def name(request: pytest.FixtureRequest) -> str:
    """Each job of the zoo; of this scope, so that the tests of one job follow each other and share its runs."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype, full backward hooks warn of inputs, ...
        yield


# the zoo itself


def test_the_zoo_holds_every_loop_and_more_than_twenty_kinds():
    assert set(LOOPS) == {path.stem for path in (HERE / "loops").glob("*.py")}
    assert len(ZOO) >= 20


def test_the_witness_trains_as_the_job_does(name):
    # or its word would be worth nothing
    run, _ = recorded_once(name)
    assert run.losses == plain_once(name).losses
    assert differing(run, plain_once(name)) == []


# not a bit


def test_losses_gradients_parameters_buffers_states_and_random_numbers_are_bit_equal_with_the_probe(name):
    run = probed_once(name)
    assert run.losses == plain_once(name).losses
    assert differing(run, plain_once(name)) == []


def test_no_hook_is_left_and_no_output_kept_alive(name):
    run = probed_once(name)
    assert (run.hooks_left, run.kept_alive) == (0, 0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_selftest_of_a_scan_finds_nothing_changed(target):
    job = load_job(str(_path(target)))
    assert run_selftest(job, job.start(0, 2), CPU, 2) == SelfTest(True, 2, 0.0, 0.0)


def test_a_probe_that_changed_a_bit_would_be_caught(monkeypatch):
    original = Probe.step_done

    def meddle(self: Probe) -> None:
        original(self)
        torch.rand(())

    monkeypatch.setattr(Probe, "step_done", meddle)
    assert "0 random state" in differing(probed("in_place"), plain_once("in_place"))


# the tables


def test_every_tensor_is_counted_as_often_as_on_paper_and_no_other(name):
    found = probed_once(name).tables
    assert {key: table.histogram.total for key, table in found.items()} == on_paper(name)
    assert set(probed_once(name).not_seen) == set(ZOO[name].not_seen)


def test_the_tables_are_those_of_the_witness(name):
    _, witness = recorded_once(name)
    assert wrong_fields(name, probed_once(name), witness) == {}


def test_skipped_steps_are_those_in_which_no_optimizer_moved_anything(name):
    assert probed_once(name).skipped == ZOO[name].skipped


@pytest.mark.parametrize("job", ["accumulation", "scaler_clipped", "checkpointed", "two_optimizers"])
def test_of_every_second_iteration_the_tables_hold_the_even_ones(job):
    _, witness = recorded_once(job)
    run = probed(job, every=2)
    assert differing(run, plain_once(job)) == []
    expected = {key: table["histogram"] for key, table in witness.tables(every=2).items()}
    assert {key: table.histogram for key, table in run.tables.items()} == expected


# what only one of them can show


def test_a_scale_of_two_to_the_twelve_moves_the_gradients_twelve_binades_back():
    loop, step = _built("scaler", CPU, _module(_path("scaler")))
    probe = Probe(loop.model, loop.optimizers, CPU)
    step(loop, 0)
    probe.step_done()
    scaled = {(table.kind, table.name): table.histogram for table in probe.tables()}
    probe.remove()
    loop, step = _built("scaler", CPU, _module(_path("scaler")))
    probe = Probe(loop.model, loop.optimizers, CPU, scaler=loop.scaler)
    step(loop, 0)
    probe.step_done()
    for table in probe.tables():
        key = (table.kind, table.name)
        assert table.histogram == scaled[key].scaled(-12 if table.kind in (AG, WG) else 0)
    probe.remove()


def test_infinite_gradients_of_a_skipped_step_are_counted_as_such():
    table = probed_once("scaler").tables[WG, "2.bias"]
    assert (table.steps, table.histogram.infs + table.histogram.nans) == (3, 2)
    assert probed_once("scaler").tables[WU, "2.bias"].steps == 2


def test_a_clipped_gradient_is_counted_as_backward_delivered_it():
    found = probed_once("clipping").tables
    assert found[WG, "2.bias"].abs_max > 2.0**-3
    # SGD at 0.1 cannot move a weight by more than a tenth of the norm it was clipped to
    assert found[WU, "2.bias"].abs_max < 2.0**-9


def test_an_update_of_a_float64_weight_that_fp32_cannot_tell_apart_is_counted():
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-30)
    probe = Probe(model, [optimizer], CPU)
    model(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
    optimizer.step()
    probe.step_done()
    (update,) = (table for table in probe.tables() if table.kind is WU)
    probe.remove()
    assert update.histogram == ExponentHistogram.from_bins({-30: 1})


def test_of_a_compiled_model_that_is_probed_itself_the_output_and_the_parameters_are_seen():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    compiled = torch.compile(model, backend="eager")
    probe = Probe(compiled, [], CPU)
    compiled(torch.ones(4, 2)).sum().backward()
    probe.step_done()
    totals = {(t.kind, t.name.removeprefix("_orig_mod.")): t.histogram.total for t in probe.tables()}
    probe.remove()
    whole = type(compiled).__name__
    assert totals == {(A, whole): 12, (AG, whole): 12, (WG, "0.weight"): 6, (WG, "0.bias"): 3}


def test_a_model_that_is_pickled_or_copied_under_the_probe_takes_no_hook_along():
    others = [each for each in gc.get_objects() if type(each) is Probe]  # of other tests; held, so that no id is reused
    model = nn.Sequential(nn.Linear(2, 2))
    probe = Probe(model, [], CPU)
    model(torch.ones(1, 2)).sum().backward()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(torch.ones(1, 2)).sum().backward()
    found = [each for each in gc.get_objects() if type(each) is Probe]
    assert [each for each in found if all(each is not other for other in others)] == [probe]
    probe.step_done()
    assert {(table.kind, table.name): table.histogram.total for table in probe.tables()} == {
        (A, "0"): 2, (AG, "0"): 2, (WG, "0.weight"): 4, (WG, "0.bias"): 2,
    }  # fmt: skip
    probe.remove()


def test_the_model_output_of_transformers_is_counted_part_by_part():
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0, 4.0]))

        def forward(self, x: torch.Tensor) -> Any:
            y = x * self.weight
            return outputs.CausalLMOutput(loss=y.sum(), logits=y, hidden_states=(y * 4, y * 8))

    model = Model()
    probe = Probe(model, [], CPU)
    out = model(torch.tensor([1.0, 1.0]))
    (out.loss + out["logits"].sum() + out.hidden_states[1].sum()).backward()
    probe.step_done()
    found = {(table.kind, table.name): table.histogram for table in probe.tables()}
    probe.remove()
    # loss 6; logits 2, 4; hidden 8, 16 and 16, 32. The gradient of y is 1 + 1 + 8 each
    assert found[A, "Model"] == ExponentHistogram.from_bins({1: 1, 2: 2, 3: 1, 4: 2, 5: 1})
    # the first hidden state is not used
    assert found[AG, "Model"] == ExponentHistogram.from_bins({0: 3, 3: 2})
    assert found[WG, "weight"] == ExponentHistogram.from_bins({3: 2})
