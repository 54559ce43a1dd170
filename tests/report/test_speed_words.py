"""What the speed and energy sections say beside their figures: the baselines, a second measurement, what to."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

import report_samples as samples
from cost_samples import full_costs
from mpdiag.costs.energy import EnergyUse
from mpdiag.costs.record import Costs
from mpdiag.diagnosis import Comparison, Diagnosis, Verification
from mpdiag.report.cost_words import cost_lines
from mpdiag.report.html import render
from mpdiag.report.html_energy import energy_view
from mpdiag.report.html_summary import boxes
from mpdiag.report.read_again import second_reading
from mpdiag.report.speed_words import lead_words, speed_notes

STORY = "The baseline chosen is most of the story."


def ratio(
    value: float, between: tuple[float, float] | None, verdict: str, base: str = "fp32", **more: Any
) -> Comparison:
    made = Comparison("step_time_ms", "ms", base, "fp16", 10.0, 10 * value, value, between, 0.03, 1, verdict,
                      is_ratio=True)  # fmt: skip
    return replace(made, **more)


def run_of(*found: Comparison, costs: Costs | None = None) -> Verification:
    return Verification((), found, "go", "r", costs=costs or Costs())


@pytest.mark.parametrize(
    ("others", "parted"),
    [
        ((ratio(1.37, (1.28, 1.46), "worse", "tf32"),), False),  # 1.36, 1.37: one story, whatever the baseline
        ((ratio(0.83, (0.79, 0.86), "better", "tf32"),), True),  # the verdicts differ
        ((ratio(2.1, (2.0, 2.2), "worse", "tf32"),), True),  # the intervals part
        ((ratio(1.06, (0.98, 1.14), "inconclusive", "tf32"),), True),  # decided against one, clear of the other
        ((ratio(1.30, (1.20, 1.50), "inconclusive", "tf32"),), False),
        ((ratio(1.30, None, "worse", "tf32"),), False),
        ((), False),
    ],
)
def test_the_baseline_is_most_of_the_story_only_where_the_ratios_part(others, parted):
    told = lead_words(run_of(ratio(1.36, (1.29, 1.44), "worse"), *others), "fp16")
    assert told is not None
    assert (STORY in told) is parted


# a second measurement of the same run


def windows(fp16_ms: float, **more: Any) -> tuple[EnergyUse, ...]:
    made = EnergyUse("fp32", 1.0, None, None, 5, 25.0, None, above_idle_reason="-", step_time_ms=10.0)
    return made, replace(made, arm="fp16", step_time_ms=fp16_ms, **more)


TIMED = ratio(1.359, (1.289, 1.443), "worse")


@pytest.mark.parametrize(("step_ms", "outside"), [(12.4, True), (12.9, False), (14.43, False), (14.5, True)])
def test_energy_windows_that_read_another_step_time_are_told(step_ms, outside):
    run = run_of(TIMED, costs=Costs(energy=windows(step_ms)))
    told = second_reading(run, TIMED)
    assert (told is not None) is outside
    if step_ms == 12.4:
        assert told == (
            "measured again over 25 s of steps, for the energy, it takes x1.240 of IEEE FP32's time, outside the "
            "interval x1.289 to x1.443, which is too narrow for such steps"
        )
        assert dict(cost_lines(run))["time"].endswith(f"; {told}")


def test_without_an_interval_or_windows_nothing_is_read_a_second_time():
    costs = Costs(energy=windows(99.0))
    assert second_reading(run_of(costs=costs), replace(TIMED, interval=None)) is None
    assert second_reading(run_of(costs=costs), replace(TIMED, baseline="tf32")) is None
    assert second_reading(run_of(costs=costs), replace(TIMED, candidate="bf16")) is None
    assert second_reading(run_of(costs=Costs(energy=windows(99.0)[1:])), TIMED) is None


def test_where_batches_differ_a_median_and_a_mean_are_not_held_against_each_other():
    costs = full_costs()
    assert costs.timing is not None
    uneven = replace(costs, energy=windows(99.0), timing=replace(costs.timing, batch_sizes=(64, 128)))
    assert second_reading(run_of(costs=replace(uneven, timing=costs.timing)), TIMED) is not None
    assert second_reading(run_of(costs=uneven), TIMED) is None


def on_gpu(**costs: Any) -> Diagnosis:
    made = samples.on_gpu()
    assert made.verification is not None
    return replace(made, verification=replace(made.verification, costs=replace(full_costs(), **costs)))


def test_the_speed_section_and_the_first_screen_say_so_too():
    far = on_gpu(energy=windows(9.0))
    assert far.verification is not None
    (note,) = [each for each in speed_notes(far.verification) if "measured again" in each]
    assert note.startswith("fp16: measured again over 25 s of steps, for the energy, it takes x0.900")
    box = next(each for each in boxes(far) if each.title.startswith("Step time"))
    assert any("but measured again" in line for line in box.lines)
    assert not any("measured again" in each for each in speed_notes(on_gpu().verification))


# the first screen's baselines


def lines_of(*found: Comparison) -> list[str]:
    made = on_gpu()
    quality = tuple(c for c in made.verification.comparisons if not c.is_ratio)
    changed = replace(made.verification, comparisons=(*quality, *found))
    box = next(each for each in boxes(replace(made, verification=changed)) if each.title.startswith("Step time"))
    return [line for line in box.lines if line.startswith("against")]


def test_the_first_screen_names_tf32_where_fp16_is_not_shown_to_be_faster_than_it():
    own = ratio(0.7, (0.65, 0.75), "better", "fp32-configured")
    both = lines_of(ratio(0.4, None, "better"), own, ratio(1.1, (1.05, 1.14), "worse", "tf32"))
    assert [line.split(":")[0] for line in both] == ["against your present settings", "against TF32"]
    assert len(lines_of(ratio(0.4, None, "better"), own, ratio(0.8, None, "better", "tf32"))) == 1


# energy


def test_the_energy_is_told_as_over_ieee_fp32_with_what_its_interval_is_of():
    source = render(on_gpu(), "none")
    assert "95 % interval, window by window" in source
    assert "both intervals at worst" not in source
    told = re.sub(r"<[^>]+>", " ", source)
    assert "ratios are to IEEE FP32 alone, for TF32 and your present settings have no window" in told


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ((), "for TF32 and your present settings have no window"),
        (("tf32",), "for your present settings have no window"),
        (("fp32-configured",), "for TF32 has no window"),
        (("tf32", "fp32-configured"), None),
    ],
)
def test_what_has_no_window_is_named_where_it_was_timed(missing, said):
    costs = full_costs()
    arms = tuple(each for each in costs.timing.arms if each.arm not in missing)
    view = energy_view(on_gpu(timing=replace(costs.timing, arms=arms)).verification)
    assert view is not None
    assert ("IEEE FP32 alone" in view.setup) is (said is not None)
    assert said is None or view.setup.endswith(said)
