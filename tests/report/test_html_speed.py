"""The page's sections on costs: step times as a forest plot, energy, what is left out, and the line for the rest."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import report_samples as samples
from cost_samples import COMPILE_FAILED, comparisons_of, full_costs
from mpdiag.costs.gpu import GpuSharing
from mpdiag.costs.kernels import WhyNot
from mpdiag.costs.record import NOT_MEASURED, Costs
from mpdiag.diagnosis import Comparison, Diagnosis, Verification
from mpdiag.report import forest
from mpdiag.report.html import render
from mpdiag.report.html_costs import missing_line
from mpdiag.report.html_energy import energy_view
from mpdiag.report.html_speed import SpeedRow, SpeedView, speed_view
from mpdiag.report.speed_words import baseline_words, lead_words, speed_notes

THIN = "\u202f"


def measured(costs: Costs | None = None, **verification: Any) -> Diagnosis:
    """The sample on a GPU with other costs, and with the comparisons that follow from them."""
    made, costs = samples.on_gpu(), costs or full_costs()
    changed = {"costs": costs, "comparisons": comparisons_of(costs)} | verification
    return replace(made, verification=replace(made.verification, **changed))


def run_of(diagnosis: Diagnosis) -> Verification:
    assert diagnosis.verification is not None
    return diagnosis.verification


def view(costs: Costs | None = None) -> SpeedView:
    made = speed_view(measured(costs))
    assert made is not None
    return made


def row(arm: str, costs: Costs | None = None) -> SpeedRow:
    return next(each for each in view(costs).rows if each.arm == arm)


def with_control(*ratios: float) -> Costs:
    """Costs whose control reads these ratios to the baseline, round by round."""
    costs = full_costs()
    base = costs.timing.arms[0].block_medians_ms
    blocks = tuple(ratio * block for ratio, block in zip(ratios, base, strict=False))
    return replace(costs, timing=replace(costs.timing, control=replace(costs.timing.control, block_medians_ms=blocks)))


def text(source: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", source.replace(THIN, " ")))


def section(source: str, name: str) -> str:
    return source[source.index(f'<section id="{name}"') :].split("</section>")[0]


# the table


def test_the_baseline_comes_first_then_its_control_then_the_arms_as_they_were_timed():
    assert [each.arm for each in view().rows] == [
        "fp32", "fp32 again", "fp32-configured", "fp16", "bf16", "tf32", "fp16-channels-last", "fp16-compile",
    ]  # fmt: skip
    assert [each.arm for each in view().rows if each.control] == ["fp32 again"]


def test_an_arm_has_its_median_its_quartiles_and_its_samples_a_second():
    found = row("fp16")
    assert (found.step, found.middle_half) == (f"50.5{THIN}ms", "50.3 to 50.8")
    assert found.samples_per_second == "2,535"  # 128 samples in 50.5 ms


def test_samples_a_second_are_unknown_where_the_batch_is():
    costs = full_costs()
    unknown = replace(costs, timing=replace(costs.timing, samples=None))
    assert row("fp16", unknown).samples_per_second is None
    assert "the batch size is not known" in section(render(measured(unknown), "none"), "speed")


def test_every_arm_has_its_ratio_to_each_baseline():
    assert view().headings == ("IEEE FP32", "your settings", "TF32")
    shown = {each.arm: tuple(cell.shown for cell in each.ratios) for each in view().rows}
    assert shown["fp16"] == ("×0.328", "×0.688", "×0.703")
    assert shown["fp32"] == ("×1", "×2.099", "×2.146")  # the same comparisons from the other side
    assert shown["fp32-configured"] == ("×0.476", "×1", None)
    assert [cell.words for cell in row("fp16").ratios] == ["faster"] * 3
    assert [cell.words for cell in row("fp32").ratios] == ["", "slower", "slower"]


def test_without_a_configured_arm_there_is_no_column_for_it():
    costs = full_costs()
    arms = tuple(each for each in costs.timing.arms if each.arm != "fp32-configured")
    assert view(replace(costs, timing=replace(costs.timing, arms=arms))).headings == ("IEEE FP32", "TF32")


def test_an_arm_that_failed_has_its_reason_as_text_and_no_number():
    shown = section(render(measured(), "none"), "speed")
    assert COMPILE_FAILED not in shown
    assert "RuntimeError: a graph with &lt;break&gt; in it" in shown
    assert row("fp16-compile").step is None


def test_the_control_reads_quiet_or_noisy_and_only_what_is_clear_of_the_noise_is_told():
    assert row("fp32 again").ratios[0].words == "quiet enough"
    noisy = with_control(*(1.1, 0.9, 1.3) * 3, 1.2)
    assert row("fp32 again", noisy).ratios[0].words == "too noisy"
    assert {cell.words for cell in row("fp16", noisy).ratios} == {"faster"}  # by x0.70 at least, the noise is x1.26
    assert [cell.words for cell in row("bf16", noisy).ratios] == ["faster", "undecided", "undecided"]
    told = " ".join(speed_notes(run_of(measured(noisy))))
    assert "too noisy to tell small differences; only what is clear of that is called faster or slower" in told


def test_a_record_without_the_controls_comparison_still_shows_its_step_time():
    run = run_of(measured())
    older = tuple(c for c in run.comparisons if c.candidate != "again" and c.baseline == "fp32")
    rows = speed_view(measured(comparisons=older)).rows
    assert (rows[1].arm, rows[1].drawing, rows[1].ratios[0].shown) == ("fp32 again", None, None)
    assert rows[1].step is not None


# the drawing


def marks(drawn: str) -> list[float]:
    return [float(x) for x in re.findall(r'class="round" cx="([\d.]+)"', drawn)]


def test_a_row_is_drawn_with_a_dot_a_round_its_interval_and_its_mean():
    drawn = str(row("fp16").drawing)
    assert len(marks(drawn)) == 9  # ten rounds, one block lost
    assert drawn.count('class="reach"') == 1
    assert 'class="mean good"' in drawn
    assert f"fp16: ratio 0.328, 95{THIN}% interval 0.326 to 0.329" in drawn
    assert row("fp32").drawing is None


def test_every_row_is_drawn_on_one_axis():
    axis = forest.axis_for([0.5, 2.0])
    assert axis.x(1.0) == forest.WIDTH / 2  # halves and doubles lie as far from 1
    assert [axis.x(0.5), axis.x(2.0)] == [forest.PAD, forest.WIDTH - forest.PAD]
    assert axis.style == "--forest-one: 130px; --forest-from: 124.7px; --forest-to: 135.1px"


@given(st.lists(st.floats(0.01, 100), max_size=8), st.lists(st.floats(0.01, 100), max_size=8))
def test_an_axis_holds_one_its_band_and_every_mean_and_interval(ratios: list[float], dots: list[float]) -> None:
    axis = forest.axis_for(ratios, dots)
    assert all(axis.low <= x <= axis.high for x in (0.97, 1.0, 1.03, *ratios))
    at = [axis.x(label) for label in axis.labels]
    assert 1.0 in axis.labels
    assert all(b - a >= forest.ROOM for a, b in itertools.pairwise(at))


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=2, unique=True))
def test_a_larger_ratio_never_lies_farther_left(pair: list[float]) -> None:
    axis = forest.axis_for([0.1, 10])
    assert axis.x(min(pair)) <= axis.x(max(pair))


def test_a_stray_round_becomes_an_arrow_and_squashes_nobody():
    axis = forest.axis_for([0.9], [0.9, 50.0])
    assert axis.high == forest.LEAST
    drawn = str(forest.row(axis, "x", 0.9, None, [0.9, 50.0], ""))
    assert len(marks(drawn)) == 1
    assert drawn.count('<path class="round"') == 1


def test_a_name_with_markup_stays_text_in_the_drawing():
    drawn = str(forest.row(forest.axis_for([1.0]), '"><b>', 1.0, None, [], ""))
    assert "<b>" not in drawn


# words


def test_the_baseline_is_named_and_the_users_settings_beside_it():
    told = baseline_words(measured())
    assert told.startswith(
        "The baseline is FP32 in IEEE arithmetic, without TF32. Your present settings, FP32 as configured"
    )
    assert "2.10 times as fast as IEEE FP32" in told


@pytest.mark.parametrize(("conv", "same"), [("ieee", True), ("none", True), ("tf32", False)])
def test_settings_that_are_ieee_already_are_said_to_be_the_baseline(conv: str, same: bool) -> None:
    diagnosis = measured(comparisons=())
    environment = replace(diagnosis.environment, fp32_precision={"cuda.matmul": "none", "cudnn.conv": conv})
    told = baseline_words(replace(diagnosis, environment=environment))
    assert ("Your settings compute the same now" in told) is same


def test_the_arm_to_train_with_is_told_against_all_three_baselines():
    assert lead_words(run_of(measured()), "fp16") == (
        "3.05 times as fast as IEEE FP32 (95 % within 3.04..3.07), 1.45 times as fast as your present settings (95 % "
        "within 1.45..1.46), 1.42 times as fast as TF32 (95 % within 1.42..1.43). The baseline chosen is most of the "
        "story."
    )
    assert lead_words(run_of(measured()), "fp16-plan") is None


def test_an_undecided_machine_makes_no_story_of_the_baseline():
    assert "story" not in lead_words(run_of(measured(with_control(*(5.0, 0.2, 6.0) * 3, 1.2))), "fp16")


def notes(costs: Costs | None = None, **verification: Any) -> list[str]:
    return list(speed_notes(run_of(measured(costs, **verification))))


def test_the_notes_say_what_was_done_otherwise_and_begin_with_a_capital():
    assert notes() == [
        "FP32 against itself reads x1.000 (0.998 to 1.002): that is the machine's noise, and faster or slower is only "
        "what lies beyond it and beyond 3 %",
        "Whether others used the GPU is not fully known: NVML does not list other processes",
        "The clock was held down (power cap) while steps were timed: fp32 at 1,740 to 1,980 MHz",
        "The arms did not fit in memory together: each block began with a fresh model",
        "fp16: 3 blocks not counted, for the GradScaler skipped a step in them: such a step is shorter",
    ]


def test_a_busy_gpu_is_a_note():
    busy = GpuSharing(1, 0.4, True, 2.5, "rule", "the GPU was busy with other work before this run")
    assert "The GPU was busy with other work before this run" in notes(replace(full_costs(), sharing=busy))


def test_a_process_that_came_while_steps_were_timed_is_a_note_and_undecides_every_ratio():
    costs = full_costs()
    alone = replace(costs.timing.sharing, processes=0, reason=None)
    made = replace(costs, timing=replace(costs.timing, sharing=alone, others=2))
    assert "2 other processes came to this GPU while steps were timed" in notes(made)
    assert {cell.words for cell in row("fp16", made).ratios} == {"undecided"}


def test_a_halved_batch_is_a_note():
    half = "costs: measured on 1/2 of the batch for all arms, because arm bf16 did not fit"
    assert "Costs: measured" in " ".join(notes(cut=(half, "arm bf16: not run")))
    assert "not run" not in " ".join(notes(cut=(half, "arm bf16: not run")))


def test_a_host_that_stalls_is_a_note():
    costs = full_costs()
    first, *others = costs.timing.arms
    slow = replace(costs, timing=replace(costs.timing, arms=(replace(first, wall_ms=2 * 154.1), *others)))
    assert "fp32: by the wall clock a step takes 308.2 ms, 2.00 times as long" in " ".join(notes(slow))


def test_arms_whose_gpu_waits_for_the_host_share_one_note():
    costs = full_costs()
    waits = [WhyNot(code, "", "", None, "formula") for code in ("launch-bound", "gpu-waits", "gpu-waits")]
    kernels = tuple(replace(each, findings=(why,)) for each, why in zip(costs.kernels, waits, strict=True))
    told = [note for note in notes(replace(costs, kernels=kernels)) if note.startswith("The GPU waits for the host")]
    assert told == ["The GPU waits for the host, so that the step is mostly the host's: it is busy "
                    f"96.7{THIN}% (fp32), "
                    f"93.1{THIN}% (fp16) of it"]  # fmt: skip


# energy


def test_energy_has_a_row_an_arm_with_ratio_idle_clock_and_limit():
    made = energy_view(run_of(measured()))
    fp32, fp16, bf16 = made.rows
    assert (fp32.shown, fp32.ratio, fp32.held_down, fp32.clock) == (f"781{THIN}mJ", None, "power cap", "1,740 to 1,980")
    assert (fp16.ratio, fp16.verdict, fp16.idle_share, fp16.held_down) == ("×0.293", "less", f"22.7{THIN}%", "no")
    assert (bf16.shown, bf16.reason) == (None, "1 other process(es) used this GPU meanwhile")
    assert made.setup == (
        "3 windows an arm in turns, 30 s in all; the idle GPU draws 132 W; ratios are to IEEE FP32 alone, for TF32 and "
        "your present settings have no window"
    )
    assert made.notes == (("fp16", "steps were skipped in 1 of the windows; a skipped step takes less"),)


def test_energy_of_one_window_says_why_it_decides_nothing():
    costs = full_costs()
    single = tuple(
        replace(use, interval=None, windows=1, by_window=use.by_window[:1], note=None) for use in costs.energy
    )
    made = energy_view(run_of(measured(replace(costs, energy=single))))
    assert made.notes == (("fp16", "one window an arm gives no interval"),)
    assert made.rows[1].verdict == "undecided"


def test_without_a_figure_there_is_no_table_of_energy():
    costs = full_costs()
    none = tuple(replace(use, joules_per_sample=None, reason="no counter") for use in costs.energy)
    assert energy_view(run_of(measured(replace(costs, energy=none)))) is None
    assert energy_view(None) is None


def test_energy_above_idle_that_is_not_told_has_its_reason_in_its_cell_and_below_the_table():
    why = "only 7.3% of the energy is above the 132 W at rest, which was read once and is not as exact"
    costs = full_costs()
    untold = tuple(
        replace(use, joules_per_sample_above_idle=None, above_idle_reason=why) if use.joules_per_sample else use
        for use in costs.energy
    )
    made = measured(replace(costs, energy=untold))
    view = energy_view(run_of(made))
    assert view.rows[0].above_idle is None
    assert ("fp32, fp16", f"energy above idle is not told: {why}") in view.notes
    assert f'<span class="absent" title="{why}">' in render(made)


# which sections there are, and the line for the rest


def sections(source: str) -> list[str]:
    every = re.findall(r'<section id="([\w-]+)"', source)
    return [name for name in every if name in ("speed", "tensor-cores", "memory", "costs")]


def links(source: str) -> list[str]:
    return re.findall(r'<a href="#([\w-]+)"', source[source.index("<nav") : source.index("</nav>")])


def test_on_a_gpu_the_sections_follow_the_verification_and_are_linked_from_the_top():
    source = render(measured(), "none")
    assert sections(source) == ["speed", "tensor-cores", "memory"]
    found = links(source)
    assert found[found.index("verification") + 1 :][:3] == ["speed", "tensor-cores", "memory"]


def test_on_a_cpu_one_sentence_says_what_was_not_measured():
    trials = (samples.run_of("fp32"), samples.run_of("fp16"))
    source = render(measured(Costs.absent(samples.NO_GPU), trials=trials), "none")
    assert sections(source) == ["costs"]
    assert text(section(source, "costs")).endswith(
        "Not measured : Step time, energy, tensor cores, peak memory and the largest batch: needs a CUDA device. "
    )
    body = source[source.index("<body") : source.index('<script type="application/json"')]
    assert text(body).count(samples.NO_GPU) == 1 + 1  # and the first screen's box
    assert "costs" in links(source)


def test_the_table_of_arms_has_no_columns_for_costs_that_the_line_below_explains():
    trial = samples.run_of("fp32")
    said = render(measured(Costs.absent("needs a CUDA GPU"), trials=(trial,)), "none")
    older = render(measured(NOT_MEASURED, trials=(trial,)), "none")
    assert "Energy per sample" not in section(said, "verification")
    assert "multiple of FP32" not in section(said, "verification")
    assert "Energy per sample" in section(older, "verification")


def without(*parts: str) -> Costs:
    """Full costs less some parts, each gone for a reason of its own."""
    gone: dict[str, Any] = {part: None if part == "timing" else () for part in parts}
    return replace(full_costs(), **gone, **{f"{part}_reason": f"no {part} here" for part in parts})


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ((), None),
        (("timing",), "Step time: no timing here"),
        (("energy", "kernels"), "Energy: no energy here; tensor cores: no kernels here"),
        (("memory",), None),  # the memory section is there for the largest batch, and says it
        (("memory", "largest_batch"), "Peak memory: no memory here; the largest batch: no largest_batch here"),
    ],
)
def test_the_line_names_what_no_section_tells(parts: Sequence[str], line: str | None) -> None:
    assert missing_line(without(*parts)) == line


def test_a_record_older_than_costs_has_no_line():
    assert missing_line(NOT_MEASURED) is None
    assert sections(render(samples.full(), "none")) == []


def test_a_page_on_a_gpu_says_no_none_and_no_nan():
    source = render(measured(), "none")
    shown = text(section(source, "speed")).replace(",", " ").split()
    assert not {"None", "nan", "NaN", "inf"} & set(shown)


def test_a_ratio_is_never_drawn_from_a_comparison_that_was_not_measured():
    missing = Comparison("step_time_ms", "", "fp32", "fp16", None, None, None, None, None, 0, "not-measured", "x", True)
    rows = speed_view(measured(comparisons=(missing,))).rows
    fp16 = next(each for each in rows if each.arm == "fp16")
    assert (fp16.drawing, [cell.shown for cell in fp16.ratios]) == (None, [None] * 3)
    assert math.isclose(forest.axis_for([]).high, forest.LEAST)


def test_the_first_screen_has_the_step_time_where_it_was_measured() -> None:
    from mpdiag.report.html_summary import boxes

    (box,) = [each for each in boxes(measured()) if each.title.startswith("Step time")]
    (ratio,) = [
        c for c in measured().verification.comparisons if (c.baseline, c.candidate) == ("fp32", "fp16")
        and c.quantity == "step_time_ms"
    ]  # fmt: skip
    assert f"{ratio.baseline_value:.3g}" in box.value
    assert f"{ratio.difference:.3g}" in box.lines[0]
    assert [each.title for each in boxes(samples.full())][2].startswith("Peak memory")
