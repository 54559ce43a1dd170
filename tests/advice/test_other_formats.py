"""BF16, TF32 and FP8 foretold from the same tables, against real casts."""

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

import block_oracle as oracle
import report_samples as samples
from mpdiag.advice import advise
from mpdiag.advice.block_formats import what_if_in_blocks
from mpdiag.advice.other_formats import own_scale, what_if
from mpdiag.advice.rounding_noise import mx_noise_db, noise_db, nvfp4_noise_db
from mpdiag.blocks import BlockCounts
from mpdiag.capture import portable_blocks
from mpdiag.capture.block_columns import block_counts_of
from mpdiag.diagnosis import Capture, SelfTest, TensorKind, TensorTable
from mpdiag.formats import BF16, E4M3, E5M2, FP16
from mpdiag.histogram import ExponentHistogram
from mpdiag.report import html
from mpdiag.report.html_formats import lost_table


def table(name, kind, values, **more):
    magnitudes = np.abs(np.asarray(values, dtype=np.float32))
    histogram = ExponentHistogram.of(magnitudes.astype(float).tolist())
    nonzero = magnitudes[magnitudes > 0]
    extremes = {"abs_max": float(nonzero.max()), "abs_min": float(nonzero.min())} if len(nonzero) else {}
    fields = {"module_type": "Linear", "dtype": "float32", "elements": len(magnitudes), "steps": 1}
    return TensorTable(
        name=name, kind=kind, histogram=histogram, **{**fields, "amp_dtype": "float16", **extremes, **more}
    )


def capture(*tables):
    return Capture("FP32", "cpu", 1, 0, True, SelfTest(True, 1), tables)


def forecasts(*tables):
    return {(f.format, f.part): f for f in what_if(capture(*tables))}


def spread(octaves, count=20_000, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal(count) * 2.0 ** generator.uniform(-octaves, 0, count)


@pytest.mark.parametrize("octaves", [2, 12, 20, 30, 40])
@pytest.mark.parametrize(
    ("fmt", "kind", "part", "dtype"),
    [
        (E4M3, TensorKind.ACTIVATION, "forward", ml_dtypes.float8_e4m3fn),
        (E4M3, TensorKind.WEIGHT, "forward", ml_dtypes.float8_e4m3fn),
        (E5M2, TensorKind.ACTIVATION_GRADIENT, "backward", ml_dtypes.float8_e5m2),
    ],
)
def test_what_fp8_loses_is_what_a_real_cast_at_that_scale_loses(fmt, kind, part, dtype, octaves):
    values = spread(octaves).astype(np.float32)
    one = table("fc", kind, values)
    cast = (values * 2.0 ** own_scale(fmt, one)).astype(np.float32).astype(dtype).astype(np.float32)
    assert np.isfinite(cast).all()
    lost = np.count_nonzero((cast == 0) & (values != 0)) / np.count_nonzero(values)
    found = forecasts(one)[fmt.name, part]
    # an element exactly on the tie is the only difference
    assert found.underflow == pytest.approx(lost, abs=1e-4)
    assert found.worst_underflow == found.underflow
    assert found.overflow == 0.0


@pytest.mark.parametrize("largest", [1e-9, 0.3, 1.0, 448.0, 450.0, 7e4])
@pytest.mark.parametrize("fmt", [E4M3, E5M2])
def test_a_tensors_own_scale_takes_its_largest_into_the_top_octave(largest, fmt):
    one = table("fc", TensorKind.ACTIVATION, [largest])
    scaled = one.abs_max * 2.0 ** own_scale(fmt, one)
    assert fmt.max / 2 < scaled <= fmt.max


def test_bf16_and_tf32_lose_nothing_of_what_fp16_would():
    wide = table("fc", TensorKind.ACTIVATION_GRADIENT, [1.0, 2.0**-60, 2.0**-100, 2.0**70])
    found = forecasts(wide)
    assert {f.verdict for f in found.values() if f.format in ("BF16", "TF32")} == {
        "range fits, 8 significant bits",
        "range fits, 11 significant bits",
    }


def test_a_tensor_wider_than_e4m3_is_named_and_counted():
    narrow = table("a", TensorKind.ACTIVATION, spread(3))
    wide = table("b", TensorKind.ACTIVATION, [1.0] * 90 + [2.0**-30] * 10)
    found = forecasts(narrow, wide)["E4M3", "forward"]
    assert (found.tensors, found.losing, found.worst, found.worst_underflow) == (2, 1, "b (activation)", 0.1)
    assert found.energy_lost == pytest.approx(10 * 4.0**-30 / 90, rel=0.01)
    assert found.verdict == "1 of 2 tensors need finer scales (by row or block) or BF16, 4 significant bits"


def test_noise_and_tensors_that_stay_in_fp32_are_not_looked_at():
    kept = table("norm", TensorKind.ACTIVATION, [1.0], amp_dtype="float32")
    noise = replace(table("bias", TensorKind.ACTIVATION_GRADIENT, [1e-12]), noise_level=True)
    assert what_if(capture(kept, noise)) == ()


def test_where_types_are_not_known_all_tensors_are_looked_at():
    assert {f.tensors for f in what_if(capture(table("a", TensorKind.ACTIVATION, [1.0], amp_dtype=None)))} == {1}


def test_the_page_has_a_row_for_each_format():
    diagnosis = samples.full()
    found = what_if(capture(table("a<b>", TensorKind.ACTIVATION, [1.0] * 9 + [2.0**-30])))
    page = html.render(replace(diagnosis, advice=replace(diagnosis.advice, other_formats=found)), plotly="none")
    section = page[page.index('<section id="other-formats">') :].split("</section>")[0]
    assert re.findall(r'<th scope="row">(\w+)</th>', section) == ["TF32", "BF16", "E4M3"]
    assert "a&lt;b&gt;" in section
    assert "10.0\u202f%" in section


# several stretches of training


def drifting():
    """The same layer early and late: late it is a thousand times smaller, and one element lags behind."""
    early = table("fc", TensorKind.ACTIVATION_GRADIENT, [1.0] * 9 + [2.0**-10])
    late = table("fc", TensorKind.ACTIVATION_GRADIENT, [2.0**-10] * 7 + [2.0**-36] * 3)
    whole = replace(early, histogram=early.histogram + late.histogram, steps=2)
    return replace(capture(whole), steps=2), (((0,), capture(early)), ((100,), capture(late)))


def test_each_stretch_has_a_scale_of_its_own():
    whole, parts = drifting()
    stale = {f.format: f for f in what_if(whole)}["E5M2"]
    found = {f.format: f for f in what_if(whole, parts)}["E5M2"]
    assert (stale.underflow, stale.worst_step) == (3 / 20, None)
    assert (found.tensors, found.steps, found.underflow, found.worst_step) == (1, 2, 0.0, None)


def test_the_stretch_where_a_tensor_loses_most_is_the_one_that_counts():
    fine = capture(table("fc", TensorKind.ACTIVATION, [1.0] * 100))
    lossy = capture(table("fc", TensorKind.ACTIVATION, [1.0] * 98 + [2.0**-30] * 2))
    whole = capture(table("fc", TensorKind.ACTIVATION, [1.0] * 398 + [2.0**-30] * 2))
    parts = (((0, 1, 2), fine), ((500,), lossy), ((900,), fine))
    pooled = {f.format: f for f in what_if(whole)}["E4M3"]
    found = {f.format: f for f in what_if(whole, parts)}["E4M3"]
    assert pooled.fits  # 0.5 %
    assert (found.losing, found.worst, found.worst_underflow, found.worst_step) == (1, "fc (activation)", 0.02, 500)
    assert found.lost == {"fc (activation)": 0.02}


def test_one_stretch_is_the_whole():
    whole, parts = drifting()
    assert what_if(whole, parts[:1]) == what_if(whole)


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


# in blocks


def in_blocks(name, kind, values, **more):
    values = np.asarray(values, dtype=np.float32)
    counts = portable_blocks.count_blocks(torch.from_numpy(values.ravel()), values.shape[-1])
    return table(name, kind, values.ravel(), blocks=block_counts_of(counts), blocks_reason=None, **more)


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


# tensor by tensor


def test_each_tensor_that_loses_is_told_with_its_share_worst_first():
    some = table("a", TensorKind.ACTIVATION, [1.0] * 99 + [2.0**-30])
    more = table("b", TensorKind.WEIGHT, [1.0] * 9 + [2.0**-30])
    none = table("c", TensorKind.WEIGHT, [1.0])
    found = forecasts(some, more, none)["E4M3", "forward"].lost
    assert list(found.items()) == [("b (weight)", 0.1), ("a (activation)", 0.01)]
    assert forecasts(none)["E4M3", "forward"].lost == {}


def test_the_page_puts_formats_side_by_side_for_each_tensor():
    forward = in_blocks("a", TensorKind.ACTIVATION, [[1.0] * 30 + [2.0**-30] * 2])
    backward = in_blocks("b<", TensorKind.ACTIVATION_GRADIENT, [[1.0] * 31 + [2.0**-50]])
    seen = capture(forward, backward)
    found = lost_table((*what_if(seen), *what_if_in_blocks(seen)))
    assert found.formats == ("FP8", "MXFP8", "NVFP4")
    assert found.rows == (("a (activation)", (1 / 16,) * 3), ("b< (activation_gradient)", (1 / 32,) * 3))
    assert (found.more, lost_table(())) == (0, None)
    diagnosis = samples.full()
    forecast_all = (*what_if(seen), *what_if_in_blocks(seen))
    page = html.render(replace(diagnosis, advice=replace(diagnosis.advice, other_formats=forecast_all)), plotly="none")
    assert "b&lt;" in page[page.index("What each tensor loses") :].split("</details>")[0]


def test_a_tensor_that_loses_in_one_format_alone_has_a_dash_in_the_others():
    spiked = in_blocks("a", TensorKind.ACTIVATION, [[1.0] + [2.0**-8] * 31])
    found = lost_table((*what_if(capture(spiked)), *what_if_in_blocks(capture(spiked))))
    assert (found.formats, found.rows) == (("NVFP4",), (("a (activation)", (15 / 32,)),))


def test_a_page_has_the_worst_tensors_and_says_how_many_more():
    many = [table(f"t{i}", TensorKind.WEIGHT, [1.0] * (9 + i) + [2.0**-30]) for i in range(45)]
    found = lost_table(what_if(capture(*many)))
    assert (len(found.rows), found.more) == (40, 5)
    assert found.rows[0] == ("t0 (weight)", (0.1,))
