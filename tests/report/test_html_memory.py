"""The page's section on memory and the largest batch, and the terminal's line."""

from __future__ import annotations

import dataclasses
import html
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_samples import full_costs
from mpdiag.costs.largest_batch import BatchTrial, LargestBatch
from mpdiag.costs.memory import MemorySplit, MemoryUse
from mpdiag.costs.record import NOT_MEASURED, Costs
from mpdiag.report.html import _environment
from mpdiag.report.html_largest_batch import batch_view
from mpdiag.report.html_memory import memory_context, memory_view
from mpdiag.report.memory_line import memory_words
from mpdiag.report.memory_reasons import half_words

THIN = "\u202f"
MIB, GIB = 2**20, 2**30
PARAMETERS = 256 * MIB
WEIGHTS = 4 * PARAMETERS  # 1 GiB
LATE = "an arm takes at least 20 s, the time budget had 9 s left for it"

FP32 = MemorySplit(WEIGHTS, 0, WEIGHTS, 2 * WEIGHTS, 8 * MIB, {"float32": 10 * GIB, "int64": 8 * MIB})
HALF = MemorySplit(
    WEIGHTS, 0, WEIGHTS, 2 * WEIGHTS, 8 * MIB, {"float16": 4 * GIB, "float32": 2 * GIB, "int64": 8 * MIB},
    WEIGHTS // 2, 16 * MIB, {}, 0,
)  # fmt: skip


def use(arm: str, split: MemorySplit | None = None, **changes: Any) -> MemoryUse:
    peak = split.total if split else 9 * GIB
    filled: dict[str, Any] = {
        "peak_allocated_bytes": peak, "peak_reserved_bytes": peak + GIB, "alloc_retries": 0,
        "driver_bytes": peak + 2 * GIB, "samples": 8, "parameters": PARAMETERS, "split": split,
        "recorded_peak_bytes": split and split.total, "peak_phase": split and "backward",
        "peak_near": split and "blocks.0", "split_reason": None if split else "no history <here>",
    }  # fmt: skip
    return MemoryUse(arm, {"fp32": "FP32"}.get(arm, "FP16 autocast"), **filled | changes)


def batch(arm: str, largest: int, **changes: Any) -> LargestBatch:
    filled: dict[str, Any] = {
        "too_large": largest + 8, "too_large_reason": "out of memory", "peak_bytes": 70 * GIB, "card_bytes": 80 * GIB,
        "budget_bytes": 76 * GIB, "fixed_bytes": 2 * GIB, "bytes_per_sample": 100 * MIB, "own_batch": 8,
        "samples_per_second": 1000.0, "step_time_ms": 1.0 * largest,
        "trials": (BatchTrial(largest, True, 70 * GIB), BatchTrial(largest + 8, False, None, "out of memory")),
    }  # fmt: skip
    return LargestBatch(arm, arm.upper(), largest, **filled | changes)


BOTH = (use("fp32", FP32), use("fp16", HALF))
BATCHES = (batch("fp32", 100), batch("fp16", 150, samples_per_second=3000.0))


def page(*uses: MemoryUse, batches: tuple[LargestBatch, ...] = (), **reasons: str) -> str:
    costs = Costs(memory=uses, largest_batch=batches, **reasons)  # type: ignore[arg-type]
    return _environment().get_template("memory.html").render(**memory_context(costs))


def text(source: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", source).replace(THIN, "_")))


def line(*uses: MemoryUse, batches: tuple[LargestBatch, ...] = ()) -> str | None:
    told = memory_words(Costs(memory=uses, largest_batch=batches))
    return told and told.replace(THIN, "_")


# --- the bars


def test_all_bars_are_drawn_on_one_axis_and_their_parts_fill_them():
    view = memory_view(BOTH)
    assert [label.replace(THIN, " ") for _, label in view.axis] == ["0", "5 GiB", "10 GiB", "15 GiB"]
    assert [float(at) for at, _ in view.axis] == pytest.approx([0, 100 / 3, 200 / 3, 100], abs=1e-3)
    for bar, split in zip(view.bars, (FP32, HALF), strict=True):
        assert float(bar.width) == pytest.approx(100 * split.total / (15 * GIB), abs=1e-3)
        assert sum(float(part.width) for part in bar.parts) == pytest.approx(100, abs=0.01)
    assert float(view.half_at) == pytest.approx(float(view.bars[0].width) / 2, abs=1e-3)


def test_parts_stand_in_the_same_order_in_every_bar_and_in_the_legend():
    view = memory_view(BOTH)
    assert [part.css for part in view.bars[0].parts] == ["weights", "gradients", "state", "full", "ints", "batch"]
    assert [css for css, _ in view.legend] == [
        "weights", "gradients", "state", "copies", "full", "half", "ints", "batch", "workspace"
    ]  # fmt: skip
    assert [row.css for row in view.parts] == [*(css for css, _ in view.legend), None]


def test_types_of_one_colour_share_a_swatch_and_keep_their_rows():
    bf16 = dataclasses.replace(HALF, activations_bytes={"bfloat16": 4 * GIB})
    view = memory_view((*BOTH, use("bf16", bf16)))
    assert ("half", "activations, float16, bfloat16") in view.legend
    assert [row.heading for row in view.parts if row.css == "half"] == ["activations, float16", "activations, bfloat16"]


def test_every_swatch_and_every_part_has_a_colour_in_the_style_sheet():
    split = MemorySplit(
        1, 1, 1, 1, 1, {"float32": 1, "float16": 1, "bool": 1}, 1, 1,
        {"before the step": 1, "forward": 1, "backward": 1, "optimizer step": 1}, 1,
    )  # fmt: skip
    style = _environment().get_template("memory.css").render()
    used = set(re.findall(r"mem-(?:part|swatch) (mem-\w+)", page(use("fp32", split), use("fp16"))))
    assert len(used) == 17
    assert {css for css in used if not re.search(rf"\.{css}[ ,][^{{]*{{ *[^}}]*background", style)} == set()


def test_a_bar_says_all_its_parts_in_words():
    assert memory_view(BOTH).bars[1].told.replace(THIN, "_") == (
        "fp16: 10.5_GiB, of which weights 1.0_GiB, gradients 1.0_GiB, optimizer state 2.0_GiB, "
        "autocast copies of weights 512_MiB, activations, float32 2.0_GiB, activations, float16 4.0_GiB, "
        "activations, int64 8.0_MiB, batch 8.0_MiB, workspace 16.0_MiB"
    )


@given(st.integers(1, 2**45), st.integers(1, 2**45))
def test_the_axis_holds_every_bar_in_round_numbers(one: int, other: int):
    view = memory_view((use("fp32", MemorySplit(one)), use("fp16", MemorySplit(other))))
    assert max(float(bar.width) for bar in view.bars) <= 100
    assert max(float(bar.width) for bar in view.bars) >= 50
    assert 3 <= len(view.axis) <= 7
    assert len({label for _, label in view.axis}) == len(view.axis)


def test_an_arm_whose_step_was_not_recorded_has_its_peak_undivided_and_the_reason():
    source = page(use("fp32", FP32), use("fp16"))
    assert "fp16: no parts: no history <here>." in text(source)
    assert 'title="not split into parts: 9.0' in source
    assert "<here>" not in source
    assert "Why it is not half" not in source


# --- the table


def rows(source: str) -> dict[str, list[str]]:
    body = source.split('<table class="memory">')[1].split("</table>")[0]
    made = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?</tr>", body, re.S)]
    return {text(cells[0]).strip(): [text(cell).strip() for cell in cells[1:]] for cells in made}


def test_the_table_gives_bytes_and_the_multiple_of_fp32s():
    found = rows(page(*BOTH))
    assert found["weights"] == ["1.0_GiB", "1.0_GiB ×1.00"]
    assert found["activations, float32"] == ["10.0_GiB", "2.0_GiB ×0.20"]
    assert found["activations, float16"] == ["0", "4.0_GiB"]
    assert found["Sum, the recorded peak"] == ["14.0_GiB", "10.5_GiB ×0.75"]
    assert found["Peak allocated"] == ["14.0_GiB", "10.5_GiB ×0.75"]
    assert found["Peak reserved"] == ["15.0_GiB", "11.5_GiB ×0.77"]
    assert found["Driver's figure"] == ["16.0_GiB", "12.5_GiB ×0.78"]
    assert found["The peak lies"] == ["backward near blocks. 0", "backward near blocks. 0"]
    assert found["Allocator retries"] == ["0", "0"]
    assert "Recorded less measured" not in found


def test_a_recorded_peak_other_than_the_measured_one_gets_a_row():
    off = dataclasses.replace(BOTH[1], recorded_peak_bytes=HALF.total, peak_allocated_bytes=HALF.total + 3 * MIB)
    assert rows(page(BOTH[0], off))["Recorded less measured"] == ["0", "−3.0_MiB"]


def test_what_is_missing_is_no_zero_and_has_its_reason():
    blind = use("fp16", HALF, driver_bytes=None, driver_reason="the driver lists no process", alloc_retries=None)
    source = page(BOTH[0], blind)
    assert rows(source)["Driver's figure"][1] == rows(source)["Allocator retries"][1] == "not measured"
    assert "fp16: no figure from the driver: the driver lists no process." in text(source)


def test_arms_that_were_not_measured_are_named_together_with_their_reason():
    dead = [MemoryUse.absent(arm, "BF16 autocast", LATE) for arm in ("bf16", "tf32")]
    source = page(BOTH[0], *dead)
    assert f"bf16 and tf32: not measured: {LATE}." in text(source)
    assert len(memory_view((BOTH[0], *dead)).bars) == 1


def test_nothing_from_a_record_becomes_markup():
    evil = dataclasses.replace(HALF, activations_bytes={"<b>": GIB}, other_bytes={"<i>": GIB})
    bad = use("fp16", evil, peak_near="<u>", notes=("<s>",), allocator_settings="<q>")
    found = (batch("<em>", 8, too_large_reason="<a>", notes=("<p>",)),)
    source = page(dataclasses.replace(bad, arm="<kbd>", precision="<del>"), BOTH[0], bad, batches=found)
    plain = page(*BOTH, batches=BATCHES)
    for tag in ("b", "i", "u", "s", "q", "p", "a", "em", "kbd", "del"):
        assert f"&lt;{tag}&gt;" in source
        if f"<{tag}>" not in plain:
            assert f"<{tag}>" not in source


# --- why it is not half


def test_the_reasons_are_told_largest_first_and_with_the_rest_add_up_to_the_gap():
    (words,) = half_words(BOTH)
    assert [each.text.replace(THIN, " ") for each in words.reasons] == [
        "weights, gradients and optimizer state stay in FP32: 4.0 GiB, 16.0 bytes a parameter",
        "activations: 6.0 GiB where half is 5.0 GiB; 2.0 GiB of them stay in FP32 (norms, softmax, loss)",
        "16-bit copies of weights, held by autocast: 512 MiB, 2.0 bytes a parameter",
    ]
    assert [each.excess_bytes for each in words.reasons] == [2 * GIB, GIB + 4 * MIB, GIB / 2]
    assert words.gap_bytes == HALF.total - FP32.total / 2
    assert sum(each.excess_bytes for each in words.reasons) + words.rest_bytes == words.gap_bytes
    assert words.moments is None
    assert not words.halved


RESNET = (  # a ResNet-50's two splits, but for what they have alike
    MemorySplit(98 * MIB, 0, 98 * MIB, 0, 0, {"float32": 9 * GIB, "int64": 98 * MIB}),
    MemorySplit(
        98 * MIB, 0, 98 * MIB, 0, 0, {"float32": 458 * 1024, "float16": 9 * GIB // 2, "int64": 98 * MIB}, 49 * MIB
    ),
)


def test_activations_that_are_neither_type_are_named_where_they_are_what_did_not_shrink():
    (words,) = half_words((use("fp32", RESNET[0]), use("fp16", RESNET[1])))
    (told,) = [each for each in words.reasons if each.text.startswith("activations")]
    assert told.brief.replace(THIN, " ") == "98.0 MiB of activations are int64"
    assert told.text.replace(THIN, " ").endswith("; 98.0 MiB of them are int64")
    assert "FP32" not in told.text


def test_the_larger_of_the_types_that_did_not_shrink_is_named_first():
    indices = dataclasses.replace(HALF, activations_bytes={"float32": GIB, "float16": 4 * GIB, "int64": 2 * GIB})
    (words,) = half_words((BOTH[0], use("fp16", indices)))
    told = next(each for each in words.reasons if each.text.startswith("activations"))
    assert told.brief.replace(THIN, " ") == "2.0 GiB of activations are int64"
    assert "2.0 GiB of them are int64; 1.0 GiB of them stay in FP32 (norms, softmax, loss)" in told.text.replace(
        THIN, " "
    )


def test_a_sliver_of_fp32_is_no_reason():
    sliver = dataclasses.replace(HALF, activations_bytes={"float32": 458 * 1024, "float16": 6 * GIB})
    (words,) = half_words((BOTH[0], use("fp16", sliver)))
    told = next(each for each in words.reasons if each.text.startswith("activations"))
    assert "FP32" not in told.text + told.brief


def test_the_page_gives_the_ratio_beside_the_foretold_one():
    shown = text(page(*BOTH))
    assert "fp16 : ×0.75 of FP32's peak; ×0.64 if all activations and their gradients took half" in shown
    assert "3.5_GiB more than half: +2.0_GiB weights, gradients and optimizer state stay in FP32" in shown
    assert "+20.0_MiB all the rest" in shown


def test_a_part_that_has_less_than_half_counts_against_the_others():
    more = dataclasses.replace(FP32, workspace_bytes=4 * GIB)
    (words,) = half_words((use("fp32", more), BOTH[1]))
    assert words.reasons[-1].excess_bytes == 16 * MIB - 2 * GIB
    assert "−2.0_GiB workspace, cuBLAS's own and what an operator at work needs" in text(
        page(use("fp32", more), BOTH[1])
    )


def test_weights_that_take_half_are_not_said_to_stay_in_fp32():
    pure = MemorySplit(WEIGHTS // 2, 0, WEIGHTS // 2, 2 * WEIGHTS, 0, {"float16": 6 * GIB})
    (words,) = half_words((BOTH[0], use("fp16-pure", pure)))
    assert [each.text.split(":")[0] for each in words.reasons] == ["optimizer state stays in FP32", "activations"]


def test_peaks_at_different_moments_say_so():
    other = use("fp16", HALF, peak_phase="optimizer step", peak_near=None)
    assert half_words((BOTH[0], other))[0].moments == (
        "the peaks lie at different moments, fp32's in backward, near blocks.0, this one in the optimizer step"
    )


def test_an_arm_that_reaches_half_gets_no_reasons():
    shown = text(page(use("fp32", FP32), use("fp16", MemorySplit(7 * GIB))))
    assert "Half is reached." in shown
    assert "more than half" not in shown


def test_full_precision_arms_are_not_asked_why_they_are_not_half():
    tf32 = dataclasses.replace(use("tf32", FP32), precision="FP32 with TF32 products")
    assert half_words((BOTH[0], tf32)) == []
    assert half_words((tf32, BOTH[1])) == []  # and without FP32's there is no half


# --- the largest batch


def cells(found: tuple[LargestBatch, ...], arm: int) -> list[list[str]]:
    made = batch_view(found).rows[arm].cells
    return [[text(str(line)).strip() for line in (cell.shown, *cell.under)] for cell in made]


def test_a_row_has_the_batch_what_it_met_peak_card_line_and_speed():
    assert cells(BATCHES, 1) == [
        ["150", "×1.50", "the job's own: 8"],
        ["158", "out of memory"],
        ["70.0_GiB", "92.1_% of what may be"],
        ["76.0_GiB", "of 80.0_GiB, the whole card"],
        ["2.0_GiB", "+ 100_MiB × batch"],
        ["3000", "×3.00", "150_ms a step"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "mine", "told"),
    [(False, True, ["at least ×1.50"]), (True, False, ["at most ×1.50"]), (True, True, []), (False, False, ["×1.50"])],
)
def test_the_ratio_of_a_batch_that_may_be_larger_is_a_bound(theirs, mine, told):
    found = (batch("fp32", 100, at_least=theirs), batch("fp16", 150, at_least=mine))
    shown = cells(found, 1)[0]
    assert shown[1:-1] == told
    assert re.sub(" +", " ", shown[0]) == ("at least 150" if mine else "150")


def test_an_asked_for_limit_is_called_one():
    assert cells((batch("fp32", 9, limited=True),), 0)[3][1] == "of 80.0_GiB, the limit asked for"


def test_an_arm_without_a_batch_gives_the_reason_over_its_row():
    found = LargestBatch.absent("bf16", "BF16", "not even one sample fits: out of memory")
    shown = text(page(batches=(BATCHES[0], found)))
    assert "none found : not even one sample fits: out of memory" in shown


def test_parts_of_a_row_that_are_missing_have_their_reasons():
    bare = LargestBatch("fp32", "FP32", 8, speed_reason="no time was left to measure the speed", notes=("a note",))
    source = page(batches=(bare, dataclasses.replace(bare, arm="fp16")))
    assert "no batch was tried that did not fit" in source
    assert "fp32 and fp16: a note." in text(source)
    assert "fp32 and fp16: no speed: no time was left to measure the speed." in text(source)


def test_every_trial_is_listed_by_batch():
    trials = (BatchTrial(16, True, GIB), BatchTrial(64, False, None, "out of memory"), BatchTrial(32, True, 2 * GIB))
    (row,) = batch_view((batch("fp32", 32, trials=trials),)).rows
    assert [(b, fits, met.replace(THIN, " ")) for b, fits, met in row.trials] == [
        (16, True, "1.0 GiB"), (32, True, "2.0 GiB"), (64, False, "out of memory"),
    ]  # fmt: skip


# --- the whole


def test_where_nothing_was_measured_the_reasons_stand():
    shown = text(page(memory_reason="needs a CUDA GPU", largest_batch_reason="not asked for: --largest-batch"))
    assert "Memory not measured : needs a CUDA GPU" in shown
    assert "Largest batch not measured : not asked for: --largest-batch" in shown
    assert "5.0" not in shown


def test_no_verification_is_no_error():
    assert memory_context(None)["memory_view"] is None
    assert memory_context(NOT_MEASURED)["memory_reason"] == "not measured"


def test_the_sample_of_a_whole_scan_is_drawn():
    costs = full_costs()
    shown = text(_environment().get_template("memory.html").render(**memory_context(costs)))
    assert "Batches of 128 samples, a model of 25,557,032 parameters." in shown
    assert all(use.arm in shown for use in costs.memory)
    assert memory_words(costs)


# --- the terminal


def test_the_terminals_line_gives_peak_place_reasons_and_batches():
    assert line(*BOTH, batches=BATCHES) == (
        "fp16 peaks at 10.5_GiB against 14.0_GiB (x0.75) in backward, near blocks.0; half is not reached because "
        "weights, gradients and optimizer state stay in FP32 (16.0 bytes a parameter) and 2.0_GiB of activations stay "
        "in FP32; largest batch 150 (fp16) against 100, there x3.00 FP32's samples a second (3,000 against 1,000)"
    )


def test_the_terminal_gives_no_reason_where_half_is_reached_or_no_step_was_recorded():
    assert line(BOTH[0], use("fp16", MemorySplit(7 * GIB))) == (
        "fp16 peaks at 7.0_GiB against 14.0_GiB (x0.50) in backward, near blocks.0"
    )
    assert line(BOTH[0], use("bf16")) == "bf16 peaks at 9.0_GiB against 14.0_GiB (x0.64)"


def test_the_terminal_names_fp16_before_the_others():
    assert (line(BOTH[0], use("bf16"), BOTH[1]) or "").startswith("fp16 peaks")


def test_the_terminal_gives_what_there_is():
    assert line(batches=(BATCHES[0],)) == "largest batch 100 (fp32)"
    assert line(batches=(batch("bf16", 9, at_least=True),)) == "largest batch at least 9 (bf16)"
    assert line(BOTH[0]) is None
    assert line(BOTH[1]) is None
    assert memory_words(NOT_MEASURED) is None
