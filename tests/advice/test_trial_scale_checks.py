"""MP601 to MP603: what the loss scales of the runs say. Both sides of every threshold."""

from __future__ import annotations

import pytest

from trial_check_samples import found, severities, skipping, trial

# MP601 skip-rate


@pytest.mark.parametrize(
    ("skips", "severity"), [(2, []), (3, ["warning"]), (10, ["warning"]), (11, ["error"]), (30, ["error"])]
)
def test_mp601_skips_of_a_hundred_steps(skips, severity):
    assert severities(found("MP601", trial(scales=skipping(100, skips)))) == severity


def test_mp601_one_in_a_hundred_is_left_alone():
    assert found("MP601", trial(scales=skipping(300, 3))) == []
    assert severities(found("MP601", trial(scales=skipping(299, 3)))) == ["warning"]


def test_mp601_skips_that_follow_a_growth_are_healthy():
    assert found("MP601", trial(scales=skipping(100, 5, growths=3))) == []
    assert severities(found("MP601", trial(scales=skipping(100, 6, growths=3)))) == ["warning"]


def test_mp601_a_scale_that_comes_down_at_the_start_is_healthy():
    coming_down = tuple(float(max(24 - step, 10)) for step in range(100))
    assert found("MP601", trial(scales=coming_down)) == []


def test_mp601_counts_over_all_seeds():
    (f,) = found("MP601", *(trial(scales=skipping(50, 1), seed=seed) for seed in range(3)))
    assert f.message == "3 of 150 steps after the first 20 of each seed were skipped, and the scale grew 0 times"
    assert f.evidence["share"] == 0.02


def test_mp601_of_plain_fp16_is_a_warning_where_the_verdict_is_about_the_plan():
    plain, planned = trial(scales=skipping(100, 50)), trial("fp16-plan", skipping(100, 0))
    assert severities(found("MP601", plain, planned)) == ["error"]
    assert severities(found("MP601", plain, planned, train_with="fp16-plan")) == ["warning"]


# MP602 scale-collapse


@pytest.mark.parametrize(
    ("final", "severity"), [(1.0, []), (0.0, []), (-1.0, ["warning"]), (-9.0, ["warning"]), (-10.0, ["error"])]
)
def test_mp602_where_the_scale_ends(final, severity):
    assert severities(found("MP602", trial(scales=(5.0, *[final] * 30)))) == severity


def test_mp602_ten_halvings_in_a_row_are_an_error_but_not_at_the_start():
    falling = tuple(float(40 - step) for step in range(11))
    assert found("MP602", trial(scales=(*falling, *[30.0] * 30))) == []
    assert severities(found("MP602", trial(scales=(*[40.0] * 30, *falling)))) == ["error"]
    nine = (*[40.0] * 30, *falling[:10])
    assert found("MP602", trial(scales=nine)) == []


@pytest.mark.parametrize(
    ("final", "severity"), [(-80.0, []), (-87.0, []), (-88.0, ["warning"]), (-96.0, ["warning"]), (-97.0, ["error"])]
)
def test_mp602_a_scale_that_starts_below_1_is_measured_from_its_start(final, severity):
    findings = found("MP602", trial(scales=(-87.0, *[final] * 30)))
    assert severities(findings) == severity
    for f in findings:
        assert f.evidence["limit"] == -87
        assert "scaler.get_scale() < 2.0**-87:" in (f.snippet or "")


def test_mp602_a_scale_that_falls_in_the_warm_up_of_a_start_below_1_still_counts():
    assert severities(found("MP602", trial(scales=tuple(-20.0 - step for step in range(15))))) == ["error"]


# MP603 scale-sawtooth


@pytest.mark.parametrize(("growths", "skips", "says"), [(2, 2, True), (3, 2, True), (1, 1, False), (2, 3, False)])
def test_mp603_a_sawtooth_is_information(growths, skips, says):
    assert severities(found("MP603", trial(scales=skipping(100, skips, growths)))) == ["info"] * says
