"""What is counted inside blocks, against real block quantisation of the same numbers."""

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import block_oracle as oracle
from mpdiag.blocks import (
    CHANNELS,
    DISTANCES,
    FEATURES,
    FILTER,
    FIRST_STEP,
    LOST_RATIO,
    NO_ROWS,
    NOT_AN_OPERAND,
    NOT_ASKED,
    RATIOS,
    TAPS,
    BlockCounts,
    nvfp4_losses,
)
from mpdiag.capture import portable_blocks
from mpdiag.capture.block_columns import block_counts_of
from mpdiag.capture.block_counting import BlockTable
from mpdiag.capture.block_layout import Rows, rows_of
from mpdiag.capture.counting import CountTable
from mpdiag.capture.probe import Probe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import SelfTest, TensorKind
from mpdiag.formats import E4M3, E5M2
from mpdiag.target import load_job

CPU = torch.device("cpu")
TARGETS = sorted((Path(__file__).parents[1] / "targets").glob("*.py"))
NVFP4_ERROR = 0.003  # the share lost, foretold and real, differed by 0.0021 at most over DISTRIBUTIONS


def counted(values, length=None):
    flat = torch.as_tensor(values).reshape(-1)
    return block_counts_of(portable_blocks.count_blocks(flat, length or flat.numel()))


def table_of(*pairs):
    """Trimmed counts with `pairs` of (place, count)."""
    return tuple(dict(pairs).get(i, 0) for i in range(max(place for place, _ in pairs) + 1))


# tiny tables


def test_distances_are_octaves_below_the_largest_of_32():
    found = counted([1.0, -0.5, 0.25, 0.3, 0.0] + [0.0] * 27 + [2.0**-20, 2.0**-21])
    assert found.distances == (2, 2, 2)
    assert found.elements == 6


def test_a_largest_above_1_75_times_its_power_of_two_has_its_scale_rounded_up():
    assert counted([1.75, 1.0]).distances == (2,)
    assert counted([math.nextafter(1.75, 2), 1.0]).distances == (2,)  # the same in FP32
    assert counted([1.7500001, 1.0]).distances == (0, 2)


def test_ratios_are_octaves_below_two_thirds_of_the_largest_of_16():
    values = [6.0, 4.0, 3.9999, 2.0, 1.0, 0.5, 0.25, 0.2499]
    assert counted(values).ratios == (2, 2, 1, 1, 1, 1)


def test_a_quarter_of_an_e2m1_unit_survives_the_count_and_anything_below_is_lost():
    assert counted([6.0, 0.25]).nvfp4_lost == 0  # the tie, which real rounding takes to zero
    assert counted([6.0, 0.2499]).nvfp4_lost == 1


def test_blocks_of_16_and_32_begin_anew_in_each_row():
    values = torch.ones(3, 40)
    values[:, 33] = 2.0**10
    found = counted(values, 40)
    assert found.distances == table_of((0, 3 * 33), (10, 3 * 7))
    assert found.ratios == table_of((0, 3 * 33), (10, 3 * 7))


def test_infinities_and_nans_neither_count_nor_set_the_scale():
    assert counted([math.inf, math.nan, 1.0, 0.5]).distances == (1, 1)
    assert counted([math.inf, 0.0]).elements == 0


def test_the_last_place_holds_all_beyond():
    found = counted([1.0] + [2.0**-100] * 3)
    assert found.distances == table_of((0, 1), (DISTANCES - 1, 3))
    assert found.ratios == table_of((0, 1), (RATIOS - 1, 3))


def test_fp32_subnormals_have_exponents_of_their_own():
    assert counted([2.0**-126, 2.0**-127, 2.0**-149]).distances == table_of((0, 1), (1, 1), (23, 1))


@pytest.mark.parametrize("abs_max", [1.0, 6.0, 3e-7])
def test_a_block_vanishes_where_its_scale_is_zero_beside_the_tensors_largest(abs_max):
    # 448 * largest / abs_max is E4M3's: at 2^-10 it becomes zero
    limit = abs_max * 2.0**-10 / 448
    binade = math.floor(math.log2(limit))
    assert nvfp4_losses({binade - 1: 10}, {}, abs_max) == (10, 10)
    assert nvfp4_losses({binade + 1: 10}, {}, abs_max) == (0, 0)
    assert nvfp4_losses({binade + 1: 10}, {binade + 1: 4}, abs_max) == (4, 0)
    lost, vanished = nvfp4_losses({binade: 1000}, {}, abs_max)
    assert lost == vanished == round(1000 * (math.log2(limit) - binade))


def test_nothing_counted_loses_nothing():
    empty = counted([0.0, 0.0])
    assert empty == BlockCounts((), (), 0, 0)
    assert (empty.mx_underflows(E4M3), empty.mx_energy_lost(E4M3), empty.nvfp4_energy_lost()) == (0, 0.0, 0.0)


# against real quantisation


def _draw(kind, count, seed):
    g = np.random.default_rng(seed)
    normal = g.standard_normal(count)
    kinds = {
        "normal": lambda: normal,
        "uniform": lambda: g.uniform(-1, 1, count),
        "laplace": lambda: g.laplace(size=count),
        "student": lambda: g.standard_t(2, count),
        "relu": lambda: np.maximum(normal, 0),
        "sparse": lambda: normal * (g.random(count) < 0.02),
        "wide": lambda: normal * np.exp2(8 * g.standard_normal(count)),
        "constant blocks": lambda: np.repeat(g.standard_normal(count // 32), 32),
        "rows apart": lambda: normal * np.repeat(np.exp2(g.uniform(-25, 0, count // 64)), 64),
        "fp16 subnormals": lambda: (normal * 1e-6).astype(np.float16),
        "largest and smallest": lambda: (
            np.where(g.random(count) < 0.03, 448.0, 2.0**-10) * g.choice([1.0, -1.0], count)
        ),
        "infs and nans": lambda: np.where(g.random(count) < 0.01, g.choice([np.inf, -np.inf, np.nan], count), normal),
        "fine steps": lambda: g.integers(-64, 65, count) / 8.0,
    }
    return kinds[kind]().astype(np.float32)


DISTRIBUTIONS = (
    *("normal", "uniform", "laplace", "student", "relu", "sparse", "wide", "constant blocks", "rows apart"),
    *("fp16 subnormals", "largest and smallest", "infs and nans", "fine steps"),
)


ON_THE_LIMIT = ("fine steps", "largest and smallest")  # few values, many of them where NVFP4 rounds either way


@pytest.mark.parametrize("length", [64, 40, 7, 1, 2**16])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize(("fmt", "dtype"), [(E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2)])
def test_what_mxfp8_loses_is_foretold_exactly_but_for_ties(fmt, dtype, kind, length):
    values = _draw(kind, 2**16 if length > 32 else 2**12, 1)
    values = values[: len(values) // length * length]
    zeros, ties = oracle.mx_zeros(values, length, dtype)
    assert counted(values, length).mx_underflows(fmt) == zeros - ties


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_ocps_own_rounding_of_the_scale_loses_no_more(kind):
    values = _draw(kind, 2**16, 2)
    zeros, _ = oracle.mx_zeros(values, 64, ml_dtypes.float8_e4m3fn, up=False)
    assert zeros <= oracle.mx_zeros(values, 64, ml_dtypes.float8_e4m3fn)[0]


@pytest.mark.parametrize("length", [64, 40, 2**16])
@pytest.mark.parametrize("kind", [k for k in DISTRIBUTIONS if k not in ON_THE_LIMIT])
def test_what_nvfp4_loses_is_foretold_within_the_error_of_its_scales(kind, length):
    values = _draw(kind, 2**18, 3)
    values = values[: len(values) // length * length]
    found = counted(values, length)
    zeros, vanished = oracle.nvfp4_zeros(values, length)
    assert found.nvfp4_lost / found.elements == pytest.approx(zeros / found.elements, abs=NVFP4_ERROR)
    assert found.nvfp4_vanished / found.elements == pytest.approx(vanished / found.elements, abs=NVFP4_ERROR)


def test_the_bound_would_notice_a_limit_that_is_an_octave_off():
    found = counted(_draw("normal", 2**18, 3), 64)
    off = sum(found.ratios[LOST_RATIO - 1 :]) / found.elements
    assert abs(off - found.nvfp4_lost / found.elements) > 10 * NVFP4_ERROR


def test_the_energy_that_nvfp4_loses_is_about_that_of_the_elements_lost():
    values = _draw("normal", 2**18, 3)
    some = oracle.blocks(values, 64, 16).astype(np.float64)
    small = np.abs(some) < np.abs(some).max(axis=1, keepdims=True) / 24
    real = (some[small] ** 2).sum() / (some**2).sum()
    assert counted(values, 64).nvfp4_energy_lost() == pytest.approx(real, rel=0.5)


# laws

FINITE = st.floats(width=32, min_value=2.0**-60, max_value=2.0**60)
NUMBERS = st.lists(st.one_of(FINITE, FINITE.map(lambda x: -x), st.just(0.0)), min_size=1, max_size=100)


@given(NUMBERS, st.integers(-60, 60))
def test_a_power_of_two_leaves_all_distances_as_they_are(values, k):
    scaled = [x * 2.0**k for x in values]
    assert counted(scaled) == counted(values)


@given(NUMBERS)
def test_every_nonzero_element_is_counted_once_in_both_sizes_of_block(values):
    found = counted(values)
    assert found.elements == sum(found.ratios) == sum(x != 0 for x in values)
    assert found.nvfp4_vanished <= found.nvfp4_lost <= found.elements


@given(NUMBERS, st.integers(1, 70))
def test_rows_are_counted_as_if_each_were_alone(values, length):
    whole = values[: len(values) // length * length] or values[:1]
    length = min(length, len(whole))
    counts = portable_blocks.count_blocks(torch.tensor(whole), length)
    rows = [torch.tensor(whole[i : i + length]) for i in range(0, len(whole), length)]
    alone = torch.stack([portable_blocks.count_blocks(row, length) for row in rows])
    assert torch.equal(counts[:-1], alone[:, :-1].sum(0))
    assert counts[-1] == alone[:, -1].max()


@pytest.mark.parametrize("length", [1, 5, 32, 40, 1000, 2**15])
def test_slices_of_bounded_memory_give_the_same_counts(length, monkeypatch):
    values = torch.from_numpy(_draw("wide", 2**15 // length * length, 4))
    whole = portable_blocks.count_blocks(values, length)
    monkeypatch.setattr(portable_blocks, "_CHUNK", 64)
    assert torch.equal(portable_blocks.count_blocks(values, length), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_counted_as_the_same_numbers_in_fp32(dtype):
    values = torch.from_numpy(_draw("wide", 4096, 5)).to(dtype)
    assert counted(values) == counted(values.float())


def test_on_other_devices_the_same_operators_give_the_same_counts(monkeypatch):
    # the branch without bincount, which would synchronize on a GPU
    values = torch.from_numpy(_draw("infs and nans", 4096, 6))
    usual = portable_blocks.count_blocks(values, 64)
    monkeypatch.setattr(torch, "bincount", None)

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return type("device", (), {"type": "elsewhere"})()

    def tally(bins, wanted, counts):
        original(bins.as_subclass(Elsewhere), wanted, counts)

    original = portable_blocks._tally
    monkeypatch.setattr(portable_blocks, "_tally", tally)
    assert torch.equal(portable_blocks.count_blocks(values, 64), usual)


# rows

X = torch.randn


@pytest.mark.parametrize(
    ("tensor", "weight", "rows"),
    [
        (X(()), False, Rows((1,), (1,), 1)),
        (X(50), False, Rows((50,), (1,), 50)),
        (X(6, 40), False, Rows((240,), (1,), 40)),
        (X(2, 6, 40), False, Rows((480,), (1,), 40)),
        (X(2, 3, 4, 5), False, Rows((2, 20, 3), (60, 1, 20), 3, CHANNELS)),
        (X(2, 3, 4, 5).to(memory_format=torch.channels_last), False, Rows((120,), (1,), 3, CHANNELS)),
        (X(2, 1, 4, 5), False, Rows((40,), (1,), 5)),
        (X(8, 3, 5), True, Rows((120,), (1,), 15, FILTER)),
        (X(8, 3, 4, 5).to(memory_format=torch.channels_last), True, Rows((480,), (1,), 60, FILTER)),
        (X(6, 40).T, False, Rows((40, 6), (1, 40), 6)),
        (X(6, 40)[:, 3:33], False, Rows((6, 30), (40, 1), 30)),
        (X(40).expand(6, 40), False, Rows((6, 40), (0, 1), 40)),
        (X(()).expand(6, 40), False, Rows((240,), (0,), 40)),
        (X(6, 40)[:, ::2], True, Rows((120,), (2,), 20)),
    ],
)
def test_rows_are_what_a_product_sums_over(tensor, weight, rows):
    assert rows_of(tensor, weight) == rows
    values = rows.of(tensor)
    assert values.numel() == rows.count == tensor.numel()
    if tensor.dim() < 4 and not weight:
        assert torch.equal(values, tensor.reshape(-1))


IMAGES = X(2, 6, 4, 5)
SIGNAL = X(2, 6, 9)


@pytest.mark.parametrize(
    ("tensor", "weight", "module_type", "expected", "length", "along"),
    [
        (IMAGES, False, "Conv2d", IMAGES.permute(0, 2, 3, 1), 6, CHANNELS),
        (IMAGES, False, "LayerNorm2d", IMAGES.permute(0, 2, 3, 1), 6, CHANNELS),
        (IMAGES, False, "ReLU", IMAGES.permute(0, 2, 3, 1), 6, CHANNELS),
        (IMAGES, False, "Linear", IMAGES, 5, FEATURES),  # an image of features, as ConvNeXt's
        (IMAGES, False, "MultiheadAttention", IMAGES, 5, FEATURES),
        (SIGNAL, False, "Conv1d", SIGNAL.permute(0, 2, 1), 6, CHANNELS),
        (SIGNAL, False, "BatchNorm1d", SIGNAL.permute(0, 2, 1), 6, CHANNELS),
        (SIGNAL[0], False, "Conv1d", SIGNAL[0].permute(1, 0), 6, CHANNELS),  # a batch of none
        (SIGNAL[0], False, "BatchNorm1d", SIGNAL[0], 9, FEATURES),  # a batch of features
        (SIGNAL, False, "Linear", SIGNAL, 9, FEATURES),
        (SIGNAL, False, "ReLU", SIGNAL, 9, FEATURES),
        (IMAGES[0], False, "Conv2d", IMAGES[0].permute(1, 2, 0), 6, CHANNELS),  # a batch of none
        (IMAGES, True, "Conv2d", IMAGES.permute(0, 2, 3, 1), 6 * 20, TAPS),
        (IMAGES, True, "ConvTranspose2d", IMAGES.permute(1, 2, 3, 0), 2 * 20, TAPS),
        (SIGNAL, True, "Experts", SIGNAL, 54, FILTER),
    ],
)
def test_blocks_run_along_what_the_reading_product_sums_over(tensor, weight, module_type, expected, length, along):
    rows = rows_of(tensor, weight, module_type)
    assert torch.equal(rows.of(tensor), expected.reshape(-1))
    assert (rows.length, rows.along) == (length, along)


def test_one_large_channel_takes_its_neighbours_at_each_pixel_and_no_others():
    images = torch.full((1, 4, 8, 8), 1.0)
    images[:, 0, 0, :] = 2.0**20
    rows = rows_of(images, False, "Conv2d")
    found = counted(rows.of(images), rows.length)
    assert found.distances == table_of((0, 8 + 4 * 56), (20, 3 * 8))  # in memory order 32 of its own channel would be


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


# the kernel's source


def test_the_kernels_launch_is_packed_as_its_source_declares_it():
    from mpdiag.capture import block_kernel

    launched = []
    kernel = block_kernel.BlockKernel(type("Function", (), {"launch": lambda self, *a: launched.append(a)})(), 264)
    values = torch.randn(7, 40)[:, 3:]
    kernel.count(
        9, values, rows_of(values, False), torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    )
    ((grid, threads, packed, offsets),) = launched
    numbers = block_kernel._BLOCKED.unpack(packed)
    assert numbers[:3] == (values.data_ptr(), 7, 37)
    assert numbers[3:9] == (7, 37, 0, 0, 0, 0)
    assert numbers[9:15] == (40, 1, 0, 0, 0, 0)
    assert numbers[15:18] == (2, 9, 0)
    assert (grid, threads, offsets) == ((1, 1), 512, (0, 136, 144))  # sizeof(Blocked) is 136: 15 words, 3 ints, padding
