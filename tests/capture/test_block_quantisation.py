"""What is counted inside blocks, against real block quantisation of the same numbers, and the laws it obeys."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import block_oracle as oracle
from block_samples import NVFP4_ERROR, counted
from mpdiag.blocks import LOST_RATIO
from mpdiag.capture import portable_blocks
from mpdiag.formats import E4M3, E5M2

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
