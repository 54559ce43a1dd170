"""BF16, TF32 and FP8 foretold from the same tables, against real casts, and tensor by tensor."""

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import report_samples as samples
from mpdiag.advice.block_formats import what_if_in_blocks
from mpdiag.advice.other_formats import own_scale, what_if
from mpdiag.diagnosis import TensorKind
from mpdiag.formats import E4M3, E5M2
from mpdiag.report import html
from mpdiag.report.html_formats import lost_table
from other_formats_samples import capture, forecasts, in_blocks, spread, table


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
