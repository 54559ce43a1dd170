"""Weight gradients, weights and updates: what is counted when, and within which memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpdiag.capture import weights
from mpdiag.capture.probe import Probe
from mpdiag.capture.slices import START, Place, Slice, next_slices
from mpdiag.diagnosis import TensorKind

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_left(monkeypatch):
    """Takes the probes of a test off again."""
    made = []
    begin = Probe.__init__
    monkeypatch.setattr(
        Probe, "__init__", lambda self, *args, **more: (made.append(self), begin(self, *args, **more))[1]
    )
    yield
    for probe in made:
        probe.remove()


def tables_of(probe):
    return {(table.kind, table.name): table for table in probe.tables()}


# slices


def test_what_fits_is_taken_whole_every_time():
    assert next_slices([(3, 4), (0, 4), (5, 2)], 22, START) == ([Slice(0, 0, 3), Slice(2, 0, 5)], START)


def test_what_does_not_fit_is_taken_in_turns():
    sizes = [(4, 4), (10, 4)]
    first, place = next_slices(sizes, 24, START)
    assert first == [Slice(0, 0, 4), Slice(1, 0, 2)]
    second, place = next_slices(sizes, 24, place)
    assert second == [Slice(1, 2, 8)]
    third, place = next_slices(sizes, 24, place)
    assert third == [Slice(1, 8, 10), Slice(0, 0, 4)]
    assert place == Place(1, 0)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from([2, 4, 8])), min_size=1, max_size=8),
    st.integers(8, 200),
)
def test_every_element_comes_round_and_no_round_takes_more_than_it_may_or_one_twice(sizes, limit):
    place = START
    seen = set()
    rounds = sum(count * size for count, size in sizes) // max(1, limit - 7) + 3
    for _ in range(rounds):
        slices, place = next_slices(sizes, limit, place)
        taken = [(part.index, i) for part in slices for i in range(part.start, part.stop)]
        assert len(taken) == len(set(taken))
        assert sum(sizes[index][1] for index, _ in taken) <= limit
        seen.update(taken)
    assert seen == {(i, j) for i, (count, _) in enumerate(sizes) for j in range(count)}


def two_layers():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    return model, torch.optim.SGD(model.parameters(), lr=2.0**-3)


def test_updates_beyond_the_memory_bound_are_watched_in_slices_and_the_table_says_which_share(monkeypatch):
    monkeypatch.setattr(weights, "UPDATE_BYTES", 4 * 48)  # of 64 + 32 elements
    model, optimizer = two_layers()
    probe = Probe(model, [optimizer], CPU)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 2.0**-4)
        optimizer.step()
        probe.step_done()
    found = tables_of(probe)
    first, second = (found[TensorKind.WEIGHT_UPDATE, name] for name in ("0.weight", "1.weight"))
    assert (first.elements, first.steps, first.sampled) == (64, 2, 0.5)
    assert first.histogram.bins == {-7: 64}
    assert (second.elements, second.steps, second.sampled) == (32, 1, None)
    assert second.histogram.bins == {-7: 32}


def test_updates_that_fit_are_not_called_sampled():
    model, optimizer = two_layers()
    probe = Probe(model, [optimizer], CPU)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    probe.step_done()
    assert {table.sampled for table in probe.tables()} == {None}


def test_without_updates_no_weight_is_copied():
    model, optimizer = two_layers()
    probe = Probe(model, [optimizer], CPU, updates=False)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    probe.step_done()
    assert {table.kind for table in probe.tables()} == set(TensorKind) - {TensorKind.WEIGHT_UPDATE}


# gradients as backward delivers them


def test_a_gradient_becomes_grad_without_a_copy_under_the_probe():
    # autograd keeps the tensor it was handed only while nobody else holds it; a probe that held it would cost memory
    parameter = nn.Parameter(torch.ones(1000))
    model = nn.Module()
    model.weight = parameter
    Probe(model, [torch.optim.SGD([parameter], lr=0.1)], CPU)
    arrived = []
    parameter.register_hook(lambda gradient: arrived.append(gradient.data_ptr()))
    (parameter * torch.randn(1000)).sum().backward()
    assert parameter.grad.data_ptr() == arrived[0]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_each_micro_batch_is_counted_as_it_came(set_to_none):
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = Probe(model, [optimizer], CPU)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=set_to_none)
        for value in (1.0, 2.0, 8.0):
            model(torch.full((1, 1), value)).sum().backward()
        optimizer.step()
        probe.step_done()
    table = tables_of(probe)[TensorKind.WEIGHT_GRADIENT, "weight"]
    assert table.histogram.bins == {0: 2, 1: 2, 3: 2}
    assert (table.elements, table.steps) == (3, 2)


def test_clipping_comes_after_the_count():
    model = nn.Linear(1, 1, bias=False)
    probe = Probe(model, [torch.optim.SGD(model.parameters(), lr=0.0)], CPU)
    model(torch.full((1, 1), 64.0)).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    probe.step_done()
    assert tables_of(probe)[TensorKind.WEIGHT_GRADIENT, "weight"].histogram.bins == {6: 1}


def test_gradients_of_autograd_grad_are_counted_too():
    model = nn.Linear(1, 1, bias=False)
    probe = Probe(model, [torch.optim.SGD(model.parameters(), lr=0.0)], CPU)
    torch.autograd.grad(model(torch.full((1, 1), 4.0)).sum(), list(model.parameters()))
    probe.step_done()
    assert tables_of(probe)[TensorKind.WEIGHT_GRADIENT, "weight"].histogram.bins == {2: 1}


# a scaler of the job's own


def scaled_step(model, optimizer, scaler, value, poison=False):
    optimizer.zero_grad()
    scaler.scale(model(torch.full((1, 1), value)).sum()).backward()
    if poison:
        model.weight.grad.fill_(float("inf"))
    scaler.step(optimizer)
    scaler.update()


def test_gradients_of_a_job_with_a_scaler_are_counted_without_its_scale_as_it_changes():
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    probe = Probe(model, [optimizer], CPU, scaler=scaler)
    for value in (1.0, 4.0):
        scaled_step(model, optimizer, scaler, value)
        probe.step_done()
    assert scaler.get_scale() == 2.0**12
    table = tables_of(probe)[TensorKind.WEIGHT_GRADIENT, "weight"]
    assert table.histogram.bins == {0: 1, 2: 1}
    assert table.abs_max_by_step == (1.0, 4.0)


def test_a_step_that_the_scaler_skips_is_seen_and_has_no_update():
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    probe = Probe(model, [optimizer], CPU, scaler=scaler)
    for poison in (False, True, False):
        scaled_step(model, optimizer, scaler, 1.0, poison)
        probe.step_done()
    assert probe.skipped_steps == 1
    found = tables_of(probe)
    assert found[TensorKind.WEIGHT_UPDATE, "weight"].steps == 2
    assert found[TensorKind.WEIGHT_GRADIENT, "weight"].steps == 3


def test_only_every_nth_iteration_is_counted():
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    probe = Probe(model, [optimizer], CPU, every=3)
    for _ in range(7):
        optimizer.zero_grad()
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        probe.step_done()
    assert {table.steps for table in probe.tables()} == {3}
