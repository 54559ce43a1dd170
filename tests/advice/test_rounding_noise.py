"""The rounding noise that is foretold for a format is that of a real cast."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import block_oracle as oracle
import report_samples as samples
from mpdiag.advice import advise
from mpdiag.advice.other_formats import own_scale
from mpdiag.advice.rounding_noise import mx_noise_db, noise_db, nvfp4_noise_db
from mpdiag.blocks import BlockCounts
from mpdiag.diagnosis import TensorKind
from mpdiag.formats import BF16, E4M3, E5M2, FP16
from mpdiag.histogram import ExponentHistogram
from mpdiag.report import html
from other_formats_samples import capture, in_blocks, table

# precision


DECIBELS = 1.2  # estimated and real ratios differed by 1.0 at most over these


@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace", "relu", "student"])
@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [(E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2), (BF16, ml_dtypes.bfloat16), (FP16, np.float16)],
)
def test_the_rounding_noise_is_that_of_a_real_cast(fmt, dtype, kind):
    values = DRAWN[kind](np.random.default_rng(0))
    one = table("fc", TensorKind.ACTIVATION, values)
    k = own_scale(fmt, one)
    scaled = values * 2.0**k
    real = oracle.decibels(scaled, scaled.astype(dtype).astype(np.float64))
    assert noise_db(one.signal, fmt, k) == pytest.approx(real, abs=DECIBELS)


@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace", "student"])
@pytest.mark.parametrize("length", [64, 40])
def test_the_rounding_noise_in_blocks_is_that_of_real_block_quantisation(kind, length):
    values = DRAWN[kind](np.random.default_rng(1)).astype(np.float32)
    blocks = in_blocks("fc", TensorKind.ACTIVATION, values[: len(values) // length * length].reshape(-1, length)).blocks
    kept = values[: len(values) // length * length]
    assert mx_noise_db(blocks, E4M3) == pytest.approx(
        oracle.mx_decibels(kept, length, ml_dtypes.float8_e4m3fn), abs=DECIBELS
    )
    assert mx_noise_db(blocks, E5M2) == pytest.approx(
        oracle.mx_decibels(kept, length, ml_dtypes.float8_e5m2), abs=DECIBELS
    )
    assert nvfp4_noise_db(blocks) == pytest.approx(oracle.nvfp4_decibels(kept, length), abs=DECIBELS)


DRAWN = {
    "normal": lambda g: g.standard_normal(2**16),
    "uniform": lambda g: g.uniform(-1, 1, 2**16),
    "laplace": lambda g: g.laplace(size=2**16),
    "relu": lambda g: np.maximum(g.standard_normal(2**16), 0),
    "student": lambda g: g.standard_t(4, 2**16),
}


@pytest.mark.parametrize("octaves", [13, 14, 15, 20, 23, 24, 25, 26, 30])
def test_what_is_subnormal_or_lost_is_noise_too(octaves):
    values = np.random.default_rng(2).uniform(1, 2, 2**15) * 2.0**-octaves
    real = oracle.decibels(values, values.astype(np.float16).astype(np.float64))
    assert noise_db(table("fc", TensorKind.ACTIVATION, values).signal, FP16) == pytest.approx(real, abs=DECIBELS)


def test_a_bit_more_is_six_decibels_more():
    flat = table("fc", TensorKind.ACTIVATION, [1.0] * 10).signal
    assert noise_db(flat, E4M3) - noise_db(flat, E5M2) == pytest.approx(20 * np.log10(2))
    assert noise_db(flat, E4M3) == pytest.approx(6.02 * 4 + 7.8, abs=0.05)


def test_a_tensor_that_vanishes_is_all_noise_and_nothing_has_no_ratio():
    gone = table("fc", TensorKind.ACTIVATION, [2.0**-40] * 10).signal
    assert noise_db(gone, FP16) == 0.0
    assert noise_db(ExponentHistogram(), FP16) is None
    assert mx_noise_db(BlockCounts((), (), 0, 0), E4M3) is None
    assert nvfp4_noise_db(BlockCounts((), (), 0, 0)) is None


def test_the_noise_of_the_worst_tensor_stands_beside_a_range_that_fits():
    normal = in_blocks("a", TensorKind.WEIGHT, np.random.default_rng(0).standard_normal((500, 64)))
    found = {f.format: f for f in advise(capture(normal)).other_formats}
    assert {f: round(found[f].noise_db) for f in ("TF32", "BF16", "E4M3", "MXFP8", "NVFP4")} == {
        "TF32": 74, "BF16": 56, "E4M3": 32, "MXFP8": 32, "NVFP4": 20,
    }  # fmt: skip
    assert found["NVFP4"].fits
    assert (found["NVFP4"].steps, found["NVFP4"].along) == (1, "the last dimension")


def test_the_page_says_what_was_counted_and_how_precise_it_is():
    rows = in_blocks("a", TensorKind.ACTIVATION, np.random.default_rng(0).standard_normal((10, 64)))
    images = replace(rows, name="b", blocks=replace(rows.blocks, along="the channels of each pixel"))
    diagnosis = samples.full()
    found = advise(capture(rows, images)).other_formats
    page = html.render(replace(diagnosis, advice=replace(diagnosis.advice, other_formats=found)), plotly="none")
    section = page[page.index('<section id="other-formats">') :].split("</section>")[0]
    assert "per block of 32, along the last dimension (1); the channels of each pixel (1)" in section
    assert "<td>the first step</td>" in section
    assert "−32&#8239;dB" in section
