"""BF16, TF32 and FP8 foretold from the same tables, against real casts."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # --import-mode=importlib adds no folder for neighbours

import report_samples as samples

from mpdiag.advice.other_formats import own_scale, what_if
from mpdiag.diagnosis import Capture, SelfTest, TensorKind, TensorTable
from mpdiag.formats import E4M3, E5M2
from mpdiag.histogram import ExponentHistogram
from mpdiag.report import html


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
        "fits, 8 significant bits",
        "fits, 11 significant bits",
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
