"""The page's section on tensor cores, and the terminal's line."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from kernel_samples import FLOPS, FP16, LADDER, LAYERS, ODD, TIME, UNTRACED
from mpdiag.costs.kernels import ArmKernels, Flops, WhyNot
from mpdiag.costs.tensor_cores import Ceilings
from mpdiag.report.html import _environment
from mpdiag.report.html_tensor_cores import WORST, CeilingRow, ceiling_rows, tensor_core_context, tensor_core_view
from mpdiag.report.tensor_core_words import counted_words, gain_in_words, missed, tensor_core_line
from mpdiag.saved import _plain, _typed

THIN = "\u202f"


def page(*arms: ArmKernels, flops: Flops | None = FLOPS, reason: str | None = None) -> str:
    return _environment().get_template("tensor_cores.html").render(**tensor_core_context(arms, flops, reason))


def text(source: str) -> str:
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", source))


def test_the_claim_stands_with_its_level_and_the_contradiction_under_it():
    shown = text(page(FP16))
    assert f"E4 , kernel names: 70.0{THIN}% of GPU kernel time in kernels known as tensor-core." in shown
    assert "E4 says yes and E3 &lt;reads&gt; nothing" in shown
    assert "E1 hardware counters by type cannot tell refused" in shown


def test_the_bar_has_a_part_for_each_class_that_is_there_and_says_all_in_words():
    bar = str(tensor_core_view([FP16], None).arms[0].bar)
    widths = {css: float(w) for css, w in re.findall(r'class="tc-(\w+)"[^>]* width="([\d.]+)"', bar)}
    assert widths == {"yes": 392, "no": 112, "unknown": 56}
    assert f"FP16: 70.0{THIN}% on tensor cores, 20.0{THIN}% not on them, 0{THIN}% names that can be either" in bar


def test_a_part_too_small_for_a_pixel_is_still_seen():
    arm = dataclasses.replace(FP16, time=dataclasses.replace(TIME, by_class={"yes": 1e-5, "no": 1 - 1e-5}))
    assert 'class="tc-yes" x="0" y="0" width="1"' in str(tensor_core_view([arm], None).arms[0].bar)


def test_layers_are_rows_with_their_answer_rate_reason_and_gain():
    shown = text(page(FP16))
    assert "blocks. 0. &lt;/script&gt; Linear 1 2 30.0" in shown
    assert f"350{THIN}TFLOP/s, 58.0{THIN}% of the sustained ceiling" in shown
    assert (
        f"7x9x8 takes 9{THIN}µs alone, 3{THIN}µs as 8x16x8. pad vocab : 0.5 ms of kernel time a step, measured" in shown
    )
    assert "3 input channels. nothing: not measured" in shown
    assert "it multiplies no matrices. leave it: nothing to gain" in shown


def test_layers_worth_mending_are_named_above_the_table():
    assert missed(FP16) == [(LAYERS[0], ODD)]
    assert "Layers worth fixing: blocks." in text(page(FP16))
    assert missed(dataclasses.replace(FP16, time=dataclasses.replace(TIME, total_ms=1000.0))) == []


def test_nothing_from_the_record_becomes_markup():
    source = page(FP16)
    assert "</script>" not in source
    assert "nvjet_&lt;b&gt;" in source


def test_more_layers_than_a_screen_fold_away():
    many = tuple(dataclasses.replace(LAYERS[0], name=f"l{i}") for i in range(WORST + 5))
    assert "5 more" in text(page(dataclasses.replace(FP16, layers=many)))
    assert "more</summary>" not in page(FP16)


def test_flops_say_what_was_counted_mended_and_left_out():
    shown = text(page(FP16))
    assert f"A step of the model is 3{THIN}TFLOP: 1{THIN}TFLOP forward, 2{THIN}TFLOP backward." in shown
    assert f"Checkpointing computes 1{THIN}GFLOP of it a second time." in shown
    assert "Mended where torch&#39;s counter is wrong: recurrent layers: 5. A note." in shown
    assert "Without a formula, so not counted: my.op." in shown


def test_flops_that_were_not_counted_say_why():
    context = tensor_core_context([FP16], None, None, flops_reason="not measured: RuntimeError: <no> formula")
    shown = text(_environment().get_template("tensor_cores.html").render(**context))
    assert "FLOPs of a step not counted : RuntimeError: &lt;no&gt; formula" in shown
    assert "FLOPs of a step" not in text(page(FP16))


def test_an_arm_that_was_not_traced_gives_its_reason_and_no_number():
    shown = text(page(UNTRACED, flops=None))
    assert "not measured : needs a CUDA GPU" in shown
    assert "%" not in shown.split("How to read")[0]


def test_a_page_without_arms_gives_the_reason():
    assert tensor_core_view([], None) is None
    assert "not measured : no GPU here" in text(page(reason="no GPU here"))


def test_a_compiled_arm_says_why_it_has_no_layers():
    arm = dataclasses.replace(FP16, layers=None, layers_reason="it is compiled")
    assert "Layers: it is compiled." in text(page(arm))


@pytest.mark.parametrize(
    ("gain", "source", "words"),
    [
        (0.0, "formula", "nothing to gain"),
        (1.234, "measured", "1.23 ms of kernel time a step, measured"),
        (0.0001, "measured", "<0.01 ms of kernel time a step, measured"),
        (1.234, "bound", "at most 1.23 ms of kernel time a step"),
        (1.234, "formula", "at most 1.23 ms of kernel time a step, by formula"),
        (1.234, "arm", "1.23 ms of a step, measured with an arm of its own"),
        (None, "not measured: no time", "not measured: no time"),
    ],
)
def test_a_gain_says_how_it_is_known(gain, source, words):
    assert gain_in_words(WhyNot("x", "", "", gain, source)) == words


WAITS = WhyNot("launch-bound", "the GPU is busy 10%", "a larger batch", None, "not measured: at most 2 ms")


@pytest.mark.parametrize("code", ["launch-bound", "gpu-waits"])
def test_in_a_step_that_waits_for_the_host_kernel_time_is_no_gain(code):
    arm = dataclasses.replace(FP16, findings=(dataclasses.replace(WAITS, code=code), *FP16.findings))
    assert missed(arm) == []
    shown = text(page(arm))
    assert "Layers worth fixing" not in shown
    assert "one region: " in shown
    assert (
        "0.5 ms of kernel time a step, measured, and little or none of the step, whose GPU waits for the host" in shown
    )
    assert gain_in_words(WhyNot("x", "", "", 0.2, "arm"), waiting=True) == (
        "0.2 ms of a step, measured with an arm of its own"
    )


CEILINGS = Ceilings(
    {"FP16": 742.0, "FP32": 51.9}, 2890.0, 8192, 3.6, {"FP16 matmul": 1755, "copy": 1980}, {},
    {"FP16 matmul": ("power cap",)}, {"BF16": "no room"}, {"FP16 matmul": 1.1, "copy": 0.4},
    {"FP16 matmul": "not steady yet: the clock fell from 1,980 to 1,755 MHz within 1.1 s (power cap)"},
    {"FP16": 812.0}, {"FP16 matmul": 1965},
)  # fmt: skip


def test_ceilings_stand_with_their_window_and_clock_beside_the_burst():
    held = "not steady yet: the clock fell from 1,980 to 1,755 MHz within 1.1 s (power cap); longer work is slower"
    burst = f"812{THIN}TFLOP/s at 1,965{THIN}MHz"
    assert ceiling_rows(CEILINGS) == (
        CeilingRow("FP16", f"742{THIN}TFLOP/s", f"1.1{THIN}s", f"1,755{THIN}MHz", held, burst),
        CeilingRow("FP32", f"51.9{THIN}TFLOP/s", None, None, ""),
        CeilingRow("copy", f"2,890{THIN}GB/s", f"0.4{THIN}s", f"1,980{THIN}MHz", ""),
    )
    assert ceiling_rows(None) == ceiling_rows(Ceilings({}, None, None, 0.0, reasons={"FP16": "no room"})) == ()
    shown = _environment().get_template("tensor_cores.html").render(**tensor_core_context([FP16], None, None, CEILINGS))
    assert shown.index("as this GPU reached it") < shown.index("742") < shown.index("longer work is slower")


def rates(arm: ArmKernels, ceilings: Ceilings | None = CEILINGS) -> list[str]:
    """The arm's own rate and those of its layers, as text."""
    view = tensor_core_view([arm], None, ceilings).arms[0]
    return [text(str(rate)) for rate in (view.rate, *(row.rate for row in view.rows)) if rate is not None]


def test_a_step_is_held_against_the_sustained_ceiling_and_a_layer_against_the_burst_and_none_is_cut_at_100():
    fast = dataclasses.replace(LAYERS[0], tflops_per_s=800.0, of_ceiling=800 / 812, of_burst=True)
    assert rates(dataclasses.replace(FP16, layers=(fast,))) == [
        f"120{THIN}TFLOP/s, 20.0{THIN}% of the sustained ceiling",
        f"800{THIN}TFLOP/s, 98.5{THIN}% of the burst ceiling",
    ]
    beyond = dataclasses.replace(fast, of_ceiling=1.06)
    older = dataclasses.replace(LAYERS[0], tflops_per_s=800.0, of_ceiling=1.217)
    assert rates(dataclasses.replace(FP16, of_ceiling=1.004, layers=(beyond, older))) == [
        f"120{THIN}TFLOP/s, 100.4{THIN}% of the sustained ceiling: beyond it, which was held down (power cap)",
        f"800{THIN}TFLOP/s, 106.0{THIN}% of the burst ceiling: beyond it, in a shape or by an algorithm that is faster "
        "than the ceiling's product",
        f"800{THIN}TFLOP/s, 121.7{THIN}% of the sustained ceiling: beyond it, which was held down (power cap)",
    ]
    assert rates(dataclasses.replace(FP16, layers=(older,)), None)[1].endswith(
        "sustained ceiling: beyond it, as a short load can be"
    )


def test_an_arm_on_a_shared_gpu_is_marked():
    shown = text(page(dataclasses.replace(FP16, shared="the GPU was busy with <other> work")))
    assert "Not this run’s alone: the GPU was busy with &lt;other&gt; work." in shown
    assert "Not this run’s alone" not in text(page(FP16))


def test_flops_of_batches_that_differ_are_called_a_mean():
    assert "That is a mean: 3 batches take 1 GFLOP to 5 GFLOP." in text(
        page(FP16, flops=dataclasses.replace(FLOPS, by_batch=(10**9, 5 * 10**9, 3 * 10**9)))
    ).replace(THIN, " ")
    assert "That is a mean" not in text(page(FP16, flops=dataclasses.replace(FLOPS, by_batch=(5, 5))))


def line(**changes: Any) -> str | None:
    return tensor_core_line([dataclasses.replace(FP16, **changes)])


def test_the_terminals_line_names_each_arm_its_share_and_level():
    assert tensor_core_line([FP16]) == (
        f"GPU kernel time on tensor cores: FP16 70.0{THIN}% + 10.0{THIN}% not known (E4); "
        "1 contradiction between the evidence"
    )
    assert line(ladder=None) == f"GPU kernel time on tensor cores: FP16 70.0{THIN}% + 10.0{THIN}% not known"


def test_the_terminal_says_nothing_where_nothing_was_traced():
    assert line(time=None) is None
    assert tensor_core_line([]) is None


@pytest.mark.parametrize("record", [FP16, UNTRACED, FLOPS])
def test_every_record_comes_back_from_its_json(record):
    text_of = json.dumps(_plain(dataclasses.asdict(record)))
    assert _typed(type(record), json.loads(text_of)) == record


# what the hardware counted, and times that do not fit


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (None, None),
        (1.001, None),
        (1.04, "More than by formula: products are padded to tiles, and small ones count up to 6 % more"),
        (1.17, "More than by formula: products are padded to tiles, and small ones count up to 6 % more; the rest is "
               "not explained"),
        (0.8, "Less than by formula: what runs on CUDA cores or is skipped, as masked attention, is not in the count"),
    ],
)  # fmt: skip
def test_a_count_that_is_not_what_formulas_give_is_explained_as_far_as_is_known(ratio, words):
    ladder = dataclasses.replace(LADDER, of_formulas=ratio)
    assert counted_words(ladder) == words
    shown = text(page(dataclasses.replace(FP16, ladder=ladder)))
    assert ("than by formula" in shown) == (words is not None)


def test_without_evidence_nothing_is_said_of_a_count():
    assert counted_words(None) is None


def caption(**changes: float) -> str:
    shown = text(page(dataclasses.replace(FP16, time=dataclasses.replace(TIME, **{"total_ms": 9.0, **changes}))))
    return shown[shown.index("ms of kernels a step") - 6 : shown.index("E1 to E5")]


def test_a_gpu_that_works_for_a_part_of_the_step_is_busy_for_that_part():
    assert f"the GPU is busy 75.0{THIN}% of the step." in caption()
    assert f"the GPU is busy 100{THIN}% of the step" in caption(busy_share=1.04)
    assert f"the GPU is busy 75.0{THIN}% of the traced step" in caption(step_traced=True)


def test_a_trace_that_is_longer_than_the_timed_step_is_said_to_disagree():
    shown = caption(busy_share=1.23)
    assert "the GPU&#39;s work took 1.23 times the step that was timed: the trace and the timed step disagree" in shown
    assert "the GPU is busy" not in shown


def test_kernels_that_overlap_are_told_with_their_time_by_the_clock():
    # an LSTM on an H100: cuDNN runs its layers on several streams
    assert "80.6 ms of kernels a step, which overlap on several streams and take 40.2 ms by the clock: " in caption(
        total_ms=80.6, busy_ms=40.2
    )
    assert "9 ms of kernels a step: " in caption(busy_ms=9.0)
