"""Blocks in a capture: which tensors and steps are counted in blocks, and why others are not."""

import ml_dtypes
import pytest
import torch

import block_oracle as oracle
from block_samples import CPU, NVFP4_ERROR, TARGETS
from mpdiag.blocks import FIRST_STEP, NO_ROWS, NOT_AN_OPERAND, NOT_ASKED, BlockCounts
from mpdiag.capture.block_columns import block_counts_of
from mpdiag.capture.block_counting import BlockTable
from mpdiag.capture.block_layout import rows_of
from mpdiag.capture.counting import CountTable
from mpdiag.capture.probe import Probe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import SelfTest, TensorKind
from mpdiag.formats import E4M3
from mpdiag.target import load_job

# in a capture


def watched(monkeypatch, path, steps=2, parts=None):
    """The tables of a capture, and by row (values, length of their rows) of every tensor counted in blocks."""
    seen = {}
    original = CountTable.add_with_blocks

    def add(self, row, tensor, weight, module_type):
        rows = rows_of(tensor, weight, module_type) if tensor.numel() else None
        seen.setdefault(row, []).append((rows.of(tensor).float().numpy().copy(), rows.length) if rows else (None, 0))
        return original(self, row, tensor, weight, module_type)

    monkeypatch.setattr(CountTable, "add_with_blocks", add)
    job = load_job(str(path))
    observation = Observation(CPU, 0, SelfTest(None, 0))
    parts = parts or [list(range(steps))]
    observe_training(job, job.start(0, parts[-1][-1] + 1), observation, parts)
    return observation, seen


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_captured_tensors_are_foretold_as_they_are_really_quantised(path, monkeypatch):
    observation, seen = watched(monkeypatch, path)
    tables = [t for t in observation.tables if t.blocks is not None]
    real = [0, 0]
    for calls in seen.values():
        for values, length in calls:
            if values is None:
                continue
            zeros, on_tie = oracle.mx_zeros(values, length, ml_dtypes.float8_e4m3fn)
            real[0] += zeros - on_tie
            real[1] += oracle.nvfp4_zeros(values, length)[0]
    elements = sum(t.blocks.elements for t in tables)
    assert len(tables) > 0
    assert elements > 0
    assert sum(t.blocks.mx_underflows(E4M3) for t in tables) == real[0]
    # few elements: a share of 0.003 is less than one of them, and E4M3's rounding of a scale decides over ties
    allowed = max(NVFP4_ERROR * elements, 0.01 * real[1] + 8)
    assert sum(t.blocks.nvfp4_lost for t in tables) == pytest.approx(real[1], abs=allowed)


def test_blocks_are_of_the_first_step_of_each_part_and_the_usual_counts_of_all(monkeypatch):
    observation, seen = watched(monkeypatch, TARGETS[[t.stem for t in TARGETS].index("encoder")], parts=[[1, 2], [4]])
    assert {len(calls) for calls in seen.values()} == {2}
    operands = [t for t in observation.tables if t.blocks is not None]
    assert {t.steps for t in operands} == {3}
    for table in operands:
        assert table.blocks_reason is None
        assert table.blocks.steps == 2
        assert table.blocks.elements <= 2 * table.elements
    parts = [{(t.kind, t.name): t.blocks for t in part.tables if t.blocks} for part in observation.parts]
    assert [{blocks.steps for blocks in part.values()} for part in parts] == [{1}, {1}]
    assert parts[0] != parts[1]
    for table in operands:
        assert table.blocks == parts[0][table.kind, table.name] + parts[1][table.kind, table.name]


def test_a_step_with_blocks_gives_the_usual_counts_of_one_without(monkeypatch):
    path = str(TARGETS[[t.stem for t in TARGETS].index("resnet")])
    with_blocks, _ = watched(monkeypatch, path, steps=1)
    monkeypatch.setattr(
        CountTable,
        "add_with_blocks",
        lambda self, row, tensor, weight, module_type: self.add(row, tensor) if tensor.numel() else None,
    )
    job = load_job(path)
    without = Observation(CPU, 0, SelfTest(None, 0))
    observe_training(job, job.start(0, 1), without, [[0]])
    assert [t.histogram for t in with_blocks.tables] == [t.histogram for t in without.tables]
    assert [t.abs_max for t in with_blocks.tables] == [t.abs_max for t in without.tables]


def test_what_is_not_counted_in_blocks_says_why():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, [optimizer], CPU, blocks=True)
    for batch in (torch.randn(3, 4), torch.randn(3, 4)):
        model(batch).sum().backward()
        optimizer.step()
        probe.step_done()
    reasons = {(t.kind, t.name): t.blocks_reason for t in probe.tables()}
    probe.remove()
    assert reasons[TensorKind.WEIGHT, "0.weight"] is None
    assert reasons[TensorKind.ACTIVATION, "0"] is None
    assert reasons[TensorKind.WEIGHT, "0.bias"] == NOT_AN_OPERAND
    assert reasons[TensorKind.WEIGHT_GRADIENT, "0.weight"] == NOT_AN_OPERAND
    assert reasons[TensorKind.WEIGHT_UPDATE, "0.weight"] == NOT_AN_OPERAND


def test_a_tensor_that_comes_only_later_or_without_rows_says_so():
    class Later(torch.nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.always, self.late, self.sparse = torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Identity()

        def forward(self, x):
            self.calls += 1
            self.sparse(torch.eye(3).to_sparse())
            return self.late(self.always(x)) if self.calls > 1 else self.always(x)

    model = Later()
    probe = Probe(model, [], CPU, blocks=True)
    for _ in range(2):
        model(torch.randn(3, 4)).sum().backward()
        probe.step_done()
    reasons = {t.name: t.blocks_reason for t in probe.tables() if t.kind is TensorKind.ACTIVATION}
    probe.remove()
    assert reasons == {"sparse": NO_ROWS, "always": None, "late": FIRST_STEP}


def test_a_probe_that_was_not_asked_counts_no_blocks():
    model = torch.nn.Linear(4, 4)
    probe = Probe(model, [], CPU)
    model(torch.randn(3, 4)).sum().backward()
    probe.step_done()
    assert {(t.blocks, t.blocks_reason) for t in probe.tables()} == {(None, NOT_ASKED)}
    probe.remove()


def test_a_module_called_twice_in_the_step_is_counted_twice():
    model = torch.nn.ReLU()
    probe = Probe(model, [], CPU, blocks=True)
    model(torch.ones(10))
    model(torch.full((10,), 4.0))
    probe.step_done()
    (table,) = probe.tables()
    probe.remove()
    assert table.blocks.distances == (20,)


def test_an_all_zero_tensor_was_counted_and_holds_nothing():
    model = torch.nn.ReLU()
    probe = Probe(model, [], CPU, blocks=True)
    model(-torch.ones(10))
    probe.step_done()
    (table,) = probe.tables()
    probe.remove()
    assert (table.blocks, table.blocks_reason) == (BlockCounts((), (), 0, 0), None)


def test_the_table_grows_to_the_row_it_is_asked_for():
    table = BlockTable(CPU, 1, kernel=False)
    values = torch.tensor([1.0, 0.25])
    assert table.add(5, values, rows_of(values, False), torch.zeros(0)) is False
    host = table.hand_over().values()
    assert len(host) == 6
    assert block_counts_of(host[5]).distances == (1, 0, 1)


def test_a_table_made_in_inference_mode_is_written_outside_of_it():
    table = CountTable(CPU)
    with torch.inference_mode():
        table.add_with_blocks(0, torch.ones(3), False)
    table.add_with_blocks(0, torch.ones(4), False)
    table.add_with_blocks(900, torch.ones(5), False)
    host = table.hand_over_blocks().values()
    assert (block_counts_of(host[0]).distances, block_counts_of(host[900]).distances) == ((7,), (5,))
