"""Which format for this job on this GPU, where nothing was trained here, and where the choice is said."""

import re
from dataclasses import replace

import pytest

import report_samples as samples
from format_choice_samples import FORECASTS, MP101, PLAN, advice, chosen, forecast, machine, scale, verified, why
from mpdiag.advice.format_choice import choose_format, tensor_core_formats, with_format_choice
from mpdiag.draft import Draft
from mpdiag.report import html
from mpdiag.report.digest import digest_of


@pytest.mark.parametrize(
    ("gpu", "formats"),
    [
        ("P100", set()),
        ("GTX 1660", set()),
        ("V100", {"FP16"}),
        ("T4", {"FP16"}),
        ("A100", {"FP16", "BF16", "TF32"}),
        ("L4", {"FP16", "BF16", "TF32", "FP8"}),
        ("H100", {"FP16", "BF16", "TF32", "FP8"}),
        ("B200", {"FP16", "BF16", "TF32", "FP8", "MXFP8", "NVFP4"}),
        ("RTX 5090", {"FP16", "BF16", "TF32", "FP8", "MXFP8", "NVFP4"}),
    ],
)
def test_tensor_cores_by_compute_capability(gpu, formats):
    assert tensor_core_formats(machine(gpu)) == formats


@pytest.mark.parametrize("more", [{}, {"gpu": "AMD Instinct MI300X", "compute_capability": "9.4", "cuda": None}])
def test_without_an_nvidia_gpu_nothing_is_said_of_its_tensor_cores(more):
    assert tensor_core_formats(machine(None, **more)) is None
    options = choose_format(machine(None, **more), advice(), None).options
    assert {option.on_this_gpu for option in options} == {None}


def test_a_cpu_is_told_from_which_gpu_on():
    choice = chosen(None)
    assert (choice.chosen, choice.verified) == ("FP16", False)
    assert (
        why(choice, "FP8")
        == "its range is foretold to fit, not trained here (NVIDIA tensor cores from compute capability 8.9 on)"
    )


# foretold


def test_fp16_where_nothing_speaks_against_it():
    choice = chosen("V100")
    assert (choice.chosen, choice.verified) == ("FP16", False)
    assert choice.reason == "foretold to fit on this Tesla V100-SXM2-16GB, loss scale 2^14, not trained here"


def test_what_the_gpu_has_beyond_is_named_but_never_as_trained():
    assert chosen("H100").reason.endswith("not trained here; the range of FP8 is foretold to fit, not trained here")
    assert chosen("B200").reason.endswith("; the range of FP8 and MXFP8 and NVFP4 is foretold to fit, not trained here")
    assert "FP8" not in chosen("A100").reason


@pytest.mark.parametrize(("gpu", "found"), [("H100", "BF16"), ("A100", "BF16"), (None, "BF16"), ("V100", "FP32")])
def test_an_empty_window_leads_to_bf16_where_there_is_any(gpu, found):
    empty = scale(None, "no scale serves all: 2^20 or more is needed, 2^4 or less is possible")
    choice = chosen(gpu, loss_scale=empty)
    assert choice.chosen == found
    assert choice.reason.startswith("FP16: no scale serves all: 2^20 or more")


def test_an_overflow_leads_to_bf16_or_where_there_is_none_to_the_plan():
    on_h100 = choose_format(machine("H100"), advice(MP101, plan=PLAN), None)
    on_v100 = choose_format(machine("V100"), advice(MP101, plan=PLAN), None)
    assert on_h100.chosen == "BF16"
    assert on_v100.chosen == "FP16 with FP32 islands"
    assert on_h100.reason.startswith("FP16 needs changes: MP101; BF16 has FP32's range")


def test_a_plan_that_is_not_enough_is_none():
    bad = replace(PLAN, enough=False)
    assert choose_format(machine("V100"), advice(MP101, plan=bad), None).chosen == "FP32"


def test_tf32_where_bf16_is_foretold_to_lose_too_much():
    lossy = (forecast("TF32"), forecast("BF16", losing=3))
    choice = choose_format(machine("A100"), advice(MP101, forecasts=lossy), None)
    assert choice.chosen == "TF32"
    assert why(choice, "BF16") == "foretold: forward, 3 of 9 tensors lose too much"


@pytest.mark.parametrize("gpu", ["P100", "GTX 1660"])
def test_fp32_where_there_are_no_tensor_cores(gpu):
    assert (chosen(gpu).chosen, chosen(gpu).reason) == ("FP32", "no tensor cores for FP16")


def test_fp32_where_autocast_has_nothing_in_16_bits():
    choice = chosen("H100", forecasts=())
    assert (choice.chosen, choice.reason) == ("FP32", "no tensor that autocast has in 16 bits was seen")
    assert why(choice, "MXFP8").startswith("no tensor cores for it: needs compute capability 10.0, this is 9.0")


def test_fp8_needs_both_halves_of_the_step():
    half = (*FORECASTS[:3], forecast("E5M2", "backward", losing=2))
    choice = chosen("H100", forecasts=half)
    assert "FP8" not in choice.reason
    assert why(choice, "FP8") == "foretold: backward, 2 of 9 tensors lose too much"


def test_overflow_is_no_fit():
    choice = chosen("H100", forecasts=(forecast("TF32"), forecast("BF16", overflow=0.1)))
    assert why(choice, "BF16") == "foretold: overflows"


def test_consumer_blackwell_is_told_that_the_library_lags():
    assert "10.x" in why(chosen("RTX 5090"), "MXFP8")
    assert "10.x" not in why(chosen("B200"), "MXFP8")


def test_how_precise_a_format_is_stands_beside_its_range():
    noisy = tuple(
        replace(each, noise_db=db) for each, db in zip(FORECASTS, (74, 56, 31.6, 25.7, 31.9, 19.6), strict=True)
    )
    choice = choose_format(machine("B200"), advice(forecasts=noisy), None)
    assert "NVFP4 (rounding noise about 20 dB below the signal)" in choice.reason
    assert why(choice, "FP8").startswith("its range is foretold to fit (rounding noise about 26 dB below the signal)")
    assert "dB" not in why(choice, "BF16")


# where it is said


def test_every_stage_of_a_scan_chooses_anew():
    draft = Draft(replace(samples.full(), advice=None, verification=None), lambda diagnosis: None)
    draft.update(advice=advice())
    first = draft.diagnosis.advice.format_choice
    draft.update(verification=verified("bf16", bf16="equivalent", fp16="worse"))
    assert (first.chosen, first.verified) == ("FP16", False)
    second = draft.diagnosis.advice.format_choice
    assert (second.chosen, second.verified) == ("BF16", True)


def test_without_advice_there_is_nothing_to_choose():
    bare = replace(samples.minimal(), advice=None)
    assert with_format_choice(bare) is bare


def test_the_screen_has_one_line():
    diagnosis = with_format_choice(samples.full())
    lines = [text for topic, text in digest_of(diagnosis).why if topic == "format"]
    choice = diagnosis.advice.format_choice
    assert lines == [f"{choice.chosen}: {choice.reason}"]
    assert [t for t, _ in digest_of(samples.full()).why if t == "format"] == []


def test_the_page_says_which_and_why_not_the_others():
    diagnosis = samples.full()
    hostile = replace(advice(), format_choice=replace(chosen("H100"), reason="because <b>"))
    page = html.render(replace(diagnosis, advice=hostile), plotly="none")
    section = page[page.index('<section id="other-formats">') :].split("</section>")[0]
    assert "<b>FP16</b>: because &lt;b&gt;." in section
    assert re.findall(r"<dt>(\w+)</dt>", section) == ["FP16", "BF16", "TF32", "FP8", "MXFP8", "NVFP4"]


def test_a_page_without_forecasts_or_choice_has_no_such_section():
    assert 'id="other-formats"' not in html.render(samples.minimal(), plotly="none")
