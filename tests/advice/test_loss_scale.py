"""The loss scale that is recommended in its window, and the shares lost at it: exact numbers on written tables."""

from __future__ import annotations

import pytest

from loss_scale_samples import MANY, capture, table, window
from mpdiag.advice.loss_scale import recommend
from mpdiag.advice.scale_window import NEGLIGIBLE_ENERGY
from mpdiag.formats import FP16
from mpdiag.report.scale_words import BY_COUNT

# the choice


def test_the_recommended_scale_keeps_room_for_gradients_to_grow():
    advice = recommend(capture(table("w", {-30: 100, -10: 900}, 2.0**-10)))
    assert (advice.lower_log2, advice.upper_log2, advice.log2_scale, advice.mode) == (5, 23, 23 - 4, "dynamic")


def test_that_room_ends_at_the_lower_end_of_the_window():
    # those at 2^-34 need 2^9, which is 2^13 less four octaves; those at 2^-36 need 2^11
    for exponent, lower in ((-34, 9), (-36, 11)):
        advice = recommend(capture(table("w", {exponent: 10, 0: 90})))
        assert (advice.lower_log2, advice.upper_log2, advice.log2_scale) == (lower, 13, lower)


def test_a_window_that_is_one_scale_gives_that_one():
    advice = recommend(capture(table("w", {-33: 1000, 5: 1}, 2.0**5)))
    assert (advice.lower_log2, advice.upper_log2, advice.log2_scale) == (8, 8, 8)


@pytest.mark.parametrize(("top", "mode"), [(8, "none"), (9, "none"), (10, "dynamic")])
def test_without_a_scaler_there_is_room_to_grow_or_none_is_advised(top, mode):
    # 2^9 bears 2^4 with two octaves of headroom, 2^10 only 2^3
    assert recommend(capture(table("w", {-10: 1000, top: 1}, 2.0**top))).mode == mode


def test_no_scale_is_recommended_where_the_ends_cross():
    small, large = table("small", {-50: 1000}), table("large", {10: 1000})
    advice = recommend(capture(small, large))
    assert (advice.lower_log2, advice.upper_log2) == (25, 3)
    assert (advice.log2_scale, advice.mode, advice.snippet) == (None, "none", None)
    assert (advice.underflow_before, advice.underflow_after, advice.energy_lost_after) == (0.5, None, None)
    assert advice.reason == "no scale serves all: 2^25 or more is needed, 2^3 or less is possible"


def test_eight_octaves_of_decay_room_need_no_scaling():
    # binade -17 is lost below 2^-8
    advice = recommend(capture(table("w", {-17: 1000})))
    assert (advice.lower_log2, advice.log2_scale, advice.mode) == (-8, 0, "none")
    assert advice.reason.startswith("nothing that matters is lost at scale 1")
    assert advice.growth_interval is None


def test_seven_octaves_of_decay_room_are_too_few_though_nothing_is_lost_yet():
    advice = recommend(capture(table("w", {-18: 1000})))
    assert (advice.lower_log2, advice.mode, advice.log2_scale) == (-7, "dynamic", 20)
    assert advice.underflow_before == 0.0


def test_gradients_that_overflow_at_scale_one_are_not_told_to_go_unscaled():
    advice = recommend(capture(table("w", {-10: 1000, 20: 1}, 2.0**20)))
    assert (advice.lower_log2, advice.upper_log2, advice.log2_scale, advice.mode) == (-15, -7, -11, "dynamic")


def test_a_wide_window_seen_over_many_steps_allows_a_static_scale_four_octaves_lower():
    advice = recommend(capture(table("w", {-25: 1000}, 2.0**-15, steps=MANY), steps=MANY))
    assert (advice.lower_log2, advice.upper_log2) == (0, 24)
    assert (advice.log2_scale, advice.mode, advice.growth_interval) == (20, "static", None)
    assert "init_scale=2.0**20, growth_interval=10**9" in (advice.snippet or "")


def test_a_wide_window_seen_over_few_steps_stays_dynamic():
    advice = recommend(capture(table("w", {-25: 1000}, 2.0**-15, steps=99), steps=99))
    assert (advice.mode, advice.log2_scale) == ("dynamic", 20)


def test_a_window_of_eleven_octaves_is_not_wide():
    # binade -30 needs 2^5; 2^-2 bears 17 - 1
    eleven = table("w", {-30: 1000, -2: 1}, 2.0**-2, steps=MANY)
    twelve = table("w", {-30: 1000, -3: 1}, 2.0**-3, steps=MANY)
    assert window(eleven, steps=MANY) == (5, 16)
    assert recommend(capture(eleven, steps=MANY)).mode == "dynamic"
    assert window(twelve, steps=MANY) == (5, 17)
    assert recommend(capture(twelve, steps=MANY)).mode == "static"


def test_a_window_of_two_octaves_lengthens_the_growth_interval():
    # 2^-33 needs 2^8, 2^3 bears 12 - 2
    advice = recommend(capture(table("w", {-33: 1000, 3: 1}, 2.0**3)))
    assert (advice.lower_log2, advice.upper_log2, advice.growth_interval) == (8, 10, 8000)
    assert "init_scale=2.0**8, growth_interval=8000" in (advice.snippet or "")
    assert (advice.snippet or "").startswith("# grows every 8000 steps, not torch's 2000: the window is narrow")


def test_a_window_of_three_octaves_keeps_torchs_growth_interval():
    advice = recommend(capture(table("w", {-32: 1000, 3: 1}, 2.0**3)))
    assert (advice.lower_log2, advice.upper_log2, advice.growth_interval) == (7, 10, 2000)
    assert "growth_interval" not in (advice.snippet or "")


def test_elements_below_fp16s_own_rounding_error_do_not_close_the_window():
    # 6 of 100 elements lie 45 octaves down: by count they need 2^20, but they carry about 2^-90 of the squared norm
    wide = table("w", {-45: 6, 0: 94}, 1.0)
    advice = recommend(capture(wide))
    assert (advice.lower_log2, advice.upper_log2, advice.log2_scale) == (13, 13, 13)
    assert advice.reason == "2^13 loses elements only below FP16's own rounding error; by count alone it would be 2^20"


def test_a_scale_by_count_that_nobody_can_set_is_no_number():
    advice = recommend(capture(table("w", {-101: 6, 0: 94}, 1.0)))  # by count 2^76, three times 2^24
    assert (advice.lower_log2, advice.upper_log2, advice.log2_scale) == (13, 13, 13)
    assert advice.reason == "2^13 loses elements only below FP16's own rounding error; by count alone no scale would do"
    assert BY_COUNT in advice.reason, "by these words the terminal knows that the reason has to be told"


def test_elements_above_fp16s_own_rounding_error_do_close_it():
    # the same conflict, but a tensor of its own: all of its norm is lost
    advice = recommend(capture(table("small", {-45: 6}), table("large", {0: 94}, 1.0)))
    assert (advice.lower_log2, advice.upper_log2, advice.log2_scale) == (20, 13, None)


def test_the_energy_limit_is_fp16s_rounding_error_squared():
    assert NEGLIGIBLE_ENERGY == (2.0**-11) ** 2


# shares and the curve


def test_the_shares_before_and_after_are_those_of_all_elements_together():
    advice = recommend(capture(table("a", {-30: 100, -10: 100}, 2.0**-10), table("b", {-10: 200}, 2.0**-10)))
    assert (advice.underflow_before, advice.underflow_after) == (0.25, 0.0)
    assert advice.energy_lost_before == pytest.approx(100 * 4.0**-20 / 300, rel=1e-6)
    assert advice.energy_lost_after == 0.0


def test_the_curve_holds_every_scale_from_below_the_window_to_eight_octaves_above_the_cap():
    advice = recommend(capture(table("w", {-30: 100, -10: 900}, 2.0**-10)))
    assert [p.log2_scale for p in advice.curve] == list(range(-4, 33))


def test_a_point_of_the_curve_is_the_share_at_that_scale():
    points = {p.log2_scale: p for p in recommend(capture(table("w", {-30: 100, -10: 900}, 2.0**-10))).curve}
    assert (points[4].underflow, points[5].underflow) == (0.1, 0.0)
    assert (points[25].overflow, points[26].overflow) == (0.0, 0.9)


def test_fp16_is_the_format_of_the_rule():
    assert (FP16.max, FP16.rounds_to_zero) == (65504.0, 2.0**-25)
