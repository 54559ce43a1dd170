"""MXFP8 and NVFP4 foretold block by block, against real block quantisation."""

import ml_dtypes
import numpy as np
import pytest

import block_oracle as oracle
from mpdiag.advice import advise
from mpdiag.advice.block_formats import what_if_in_blocks
from mpdiag.diagnosis import TensorKind
from other_formats_samples import capture, forecasts, in_blocks, spread, table

# in blocks


def block_forecasts(*tables):
    return {(f.format, f.part): f for f in what_if_in_blocks(capture(*tables))}


def test_blocks_lose_what_real_block_quantisation_loses():
    values = (spread(30) * 2.0 ** np.repeat(np.linspace(0, -12, 20_000 // 40), 40)).reshape(-1, 40).astype(np.float32)
    found = block_forecasts(in_blocks("fc", TensorKind.ACTIVATION_GRADIENT, values))
    zeros, ties = oracle.mx_zeros(values, 40, ml_dtypes.float8_e4m3fn)
    assert found["MXFP8", "backward"].underflow == (zeros - ties) / np.count_nonzero(values)
    zeros, _ = oracle.nvfp4_zeros(values, 40)
    assert found["NVFP4", "backward"].underflow == pytest.approx(zeros / np.count_nonzero(values), abs=0.003)


def test_a_tensor_wider_than_e4m3_fits_in_blocks_where_each_is_narrow():
    rows = spread(2, 3200).reshape(-1, 32) * 2.0 ** -np.linspace(0, 60, 100)[:, None]
    one = in_blocks("fc", TensorKind.ACTIVATION, rows)
    assert forecasts(one)["E4M3", "forward"].losing == 1
    assert block_forecasts(one)["MXFP8", "forward"].fits
    nvfp4 = block_forecasts(one)["NVFP4", "forward"]
    assert nvfp4.losing == 1
    assert "of 1 more than 1% lies in blocks too small for any scale" in nvfp4.verdict


def test_a_normal_tensor_fits_and_a_spiked_one_is_named():
    normal = np.random.default_rng(0).standard_normal((500, 64))
    spiked = normal.copy()
    spiked[:, ::16] = 1000.0
    found = block_forecasts(in_blocks("a", TensorKind.WEIGHT, normal), in_blocks("b", TensorKind.ACTIVATION, spiked))[
        "NVFP4", "forward"
    ]
    assert (found.tensors, found.losing, found.worst) == (2, 1, "b (activation)")
    assert found.worst_underflow == pytest.approx(15 / 16)
    assert (found.scaling, found.significant_bits, found.overflow) == ("per block of 16", 2, 0.0)
    assert found.verdict == "1 of 2 tensors lose more than 15%, 2 significant bits"


def test_mxfp8_that_loses_says_whether_e5m2_would():
    values = np.full((50, 32), 2.0**-25)
    values[:, 0] = 1.0
    found = block_forecasts(in_blocks("g", TensorKind.ACTIVATION_GRADIENT, values))["MXFP8", "backward"]
    assert found.verdict == "1 of 1 tensors lose more than 1%, 4 significant bits; with E5M2 elements 0"


def test_nvfp4_gradients_are_told_to_be_rounded_otherwise():
    values = np.random.default_rng(1).standard_normal((50, 32))
    verdict = block_forecasts(in_blocks("g", TensorKind.ACTIVATION_GRADIENT, values))["NVFP4", "backward"].verdict
    told = "rounded to nearest: stochastic rounding, as recipes have it here, loses less"
    assert verdict == f"range fits, 2 significant bits; {told}"


def test_what_was_not_counted_in_blocks_is_not_forecast():
    assert what_if_in_blocks(capture(table("a", TensorKind.ACTIVATION, [1.0]))) == ()
    kept = in_blocks("norm", TensorKind.ACTIVATION, np.ones((1, 32)), amp_dtype="float32")
    assert what_if_in_blocks(capture(kept)) == ()


def test_advice_has_both_kinds_of_forecast():
    found = advise(capture(in_blocks("a", TensorKind.ACTIVATION, np.ones((1, 32))))).other_formats
    assert [f.format for f in found] == ["TF32", "BF16", "E4M3", "MXFP8", "NVFP4"]
