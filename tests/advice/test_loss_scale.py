"""The loss scale and its window: exact numbers on tables written by hand, laws, and real FP16 casts as the oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpdiag.advice.loss_scale import recommend
from mpdiag.advice.scale_window import CAP, NEGLIGIBLE_ENERGY, fp16_gradients
from mpdiag.diagnosis import Capture, LossScaleAdvice, SelfTest, TensorKind, TensorTable
from mpdiag.formats import FP16
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import LoopFacts, OptimizerGroup, for_all_optimizers
from mpdiag.other_formats import BF16_SNIPPET, TF32_SNIPPET
from mpdiag.report.scale_words import BY_COUNT

ACTIVATION, WEIGHT = TensorKind.ACTIVATION_GRADIENT, TensorKind.WEIGHT_GRADIENT
FEW, MANY = 20, 100


def table(
    name: str,
    bins: dict[int, int],
    maxima: float | Sequence[float] | None = None,
    kind: TensorKind = WEIGHT,
    steps: int = FEW,
    **more: Any,
) -> TensorTable:
    """A gradient table; without maxima each step reaches the bottom of the highest binade."""
    histogram = ExponentHistogram.from_bins(bins)
    if maxima is None:
        maxima = 2.0**histogram.highest
    by_step = (float(maxima),) * steps if isinstance(maxima, int | float) else tuple(maxima)
    fields = {"amp_dtype": "float16", "abs_max": max(by_step), "abs_min": 2.0**histogram.lowest} | more
    return TensorTable(
        name, "Linear", kind, "float32", histogram.total // steps, steps, histogram, abs_max_by_step=by_step, **fields
    )


def capture(*tables: TensorTable, steps: int = FEW, **more: Any) -> Capture:
    fields = {"losses": (1.0,) * steps, "loss_amp_dtype": "float32"} | more
    return Capture("FP32", "cpu", steps, 0, True, SelfTest(True, 2, 0.0, 0.0), tables, **fields)


def window(*tables: TensorTable, **more: Any) -> tuple[int | None, int | None]:
    advice = recommend(capture(*tables, **more))
    return advice.lower_log2, advice.upper_log2


# the upper end


def test_few_steps_keep_two_octaves_above_the_largest_gradient():
    # log2(65504 / 2^-4) = 19.9993, floored 19, less 2
    assert window(table("w", {-10: 100, -4: 1})) == (-15, 17)


def test_a_hundred_steps_keep_one_octave():
    assert window(table("w", {-10: 100, -4: 1}, steps=MANY), steps=MANY)[1] == 18


def test_ninety_nine_steps_still_keep_two():
    assert window(table("w", {-10: 100, -4: 1}, steps=99), steps=99)[1] == 17


def test_a_maximum_just_below_a_power_of_two_costs_an_octave_less_than_the_power():
    # 65504 is just below 2^16: what stays at or under 65504 / 2^20 bears 2^20, 2^-4 itself does not
    assert window(table("w", {-5: 100}, 65504 * 2.0**-20))[1] == 20 - 2
    assert window(table("w", {-4: 100}, 2.0**-4))[1] == 19 - 2


def test_the_largest_maximum_of_all_steps_counts():
    maxima = [2.0**-6] * 19 + [2.0**-4]
    assert window(table("w", {-6: 1000, -4: 1}, maxima))[1] == 17


def test_maxima_that_vary_keep_the_log_normal_tail_below_the_ceiling():
    # log2 of the maxima: half -8, half -4; mean -6, deviation 2, so 99.9 % lie below -6 + 6.18 = 0.18
    maxima = [2.0**-8, 2.0**-4] * 50
    advice = recommend(capture(table("w", {-8: 1000, -4: 10}, maxima, steps=MANY), steps=MANY))
    assert advice.upper_log2 == math.floor(math.log2(65504) - 0.18) == 15


def test_the_tail_of_all_tensors_together_counts_though_each_alone_is_steady():
    # they take turns: together half the steps are at -10, half at -1; mean -5.5, deviation 4.5
    a, b = table("a", {-10: 100}, [2.0**-10, 0.0] * 10), table("b", {-1: 100}, [0.0, 2.0**-1] * 10)
    assert window(b)[1] == 16 - 2
    assert window(a, b)[1] == math.floor(math.log2(65504) + 5.5 - 3.09 * 4.5) == 7


def test_steps_without_a_gradient_are_left_out_of_the_tail():
    assert window(table("w", {-4: 100}, [0.0, 2.0**-4] * 10))[1] == 17


def test_the_upper_end_stops_at_24():
    assert window(table("w", {-30: 1000}))[1] == 24


def test_an_activation_gradient_bounds_the_scale_as_a_weight_gradient_does():
    both = table("w", {-10: 1000}), table("layer", {-10: 1000, 2: 1}, kind=ACTIVATION)
    advice = recommend(capture(*both))
    assert advice.upper_log2 == 13 - 2
    assert advice.limited_by["upper"] == ("layer (activation_gradient)",)


def test_the_tensors_within_an_octave_of_the_upper_end_are_named_nearest_first():
    tables = [table(f"w{i}", {-10: 1000, top: 1}) for i, top in enumerate((-6, -3, -4, -8))]
    advice = recommend(capture(*tables))
    assert advice.upper_log2 == 16
    assert advice.limited_by["upper"] == ("w1 (weight_gradient)", "w2 (weight_gradient)")


def test_no_more_than_three_tensors_are_named():
    tables = [table(f"w{i}", {-30: 1000, -4: 1}) for i in range(5)]
    advice = recommend(capture(*tables))
    assert len(advice.limited_by["upper"]) == 3
    assert len(advice.limited_by["lower"]) == 3


def test_where_the_cap_binds_no_tensor_is_blamed():
    assert recommend(capture(table("w", {-30: 1000}))).limited_by["upper"] == ()


def test_an_fp16_loss_bounds_the_scale():
    advice = recommend(capture(table("w", {-14: 1000}), losses=(3.0, 8.0), loss_amp_dtype="float16"))
    assert advice.upper_log2 == math.floor(math.log2(65504 / 8.0)) - 2 == 10
    assert advice.limited_by["upper"] == ("the loss itself",)


def test_an_fp32_loss_does_not_bound_the_scale():
    assert recommend(capture(table("w", {-14: 1000}), losses=(8.0,))).upper_log2 == CAP


def test_a_loss_that_is_not_finite_or_zero_does_not_bound_the_scale():
    losses = (math.nan, math.inf, 0.0)
    assert recommend(capture(table("w", {-14: 1000}), losses=losses, loss_amp_dtype="float16")).upper_log2 == CAP


# the lower end


def test_the_lower_end_is_the_smallest_scale_at_which_at_most_a_thousandth_is_lost():
    # the 2 elements in binade -30 of 1000 are too many, so 2^-30 has to reach 2^-25: k = 5
    assert window(table("w", {-30: 2, -10: 998}))[0] == 5


def test_a_thousandth_itself_may_be_lost():
    assert window(table("w", {-30: 1, -10: 999}))[0] == -15


def test_a_tensor_may_lose_a_twentieth_where_all_together_lose_less_than_a_thousandth():
    large = table("large", {-10: 100_000})
    assert window(large, table("small", {-30: 5, -10: 95}))[0] == -15
    assert window(large, table("small", {-30: 6, -10: 94}))[0] == 5


def test_the_tensors_that_lose_one_octave_below_the_lower_end_are_named_worst_first():
    a, b = table("a", {-30: 10, -10: 90}), table("b", {-30: 40, -10: 60})
    advice = recommend(capture(a, b, table("c", {-5: 100})))
    assert advice.lower_log2 == 5
    assert advice.limited_by["lower"] == ("b (weight_gradient)", "a (weight_gradient)")


def test_fp32_subnormals_still_have_a_lower_end():
    # binade -149 reaches 2^-25 at 2^124
    advice = recommend(capture(table("w", {-149: 1000})))
    assert (advice.lower_log2, advice.upper_log2) == (124, 24)
    assert advice.log2_scale is None


# what takes part


def test_noise_level_gradients_take_no_part():
    noise = table("bias", {-40: 10**6}, noise_level=True)
    assert fp16_gradients(capture(noise)) == []
    assert window(table("w", {-10: 1000}), noise) == (-15, 23)


def test_elements_below_the_noise_floor_take_no_part():
    packed = table("in_proj_bias", {-45: 500, -10: 500}, noise_floor_log2=-30)
    assert window(packed) == (-15, 23)
    advice = recommend(capture(packed))
    assert advice.underflow_before == 0.0


def test_elements_at_the_noise_floor_count():
    assert window(table("in_proj_bias", {-30: 500, -10: 500}, noise_floor_log2=-30))[0] == 5


def test_gradients_that_stay_fp32_under_autocast_take_no_part():
    norm = table("norm.weight", {-60: 1000, 20: 1}, amp_dtype="float32")
    assert window(table("w", {-10: 1000}), norm) == (-15, 23)


def test_bf16_gradients_take_no_part():
    assert fp16_gradients(capture(table("w", {-10: 1}, amp_dtype="bfloat16"))) == []


def test_activations_weights_and_updates_take_no_part():
    others = [table("x", {-10: 1}, kind=k) for k in TensorKind if k not in (ACTIVATION, WEIGHT)]
    assert fp16_gradients(capture(*others)) == []


def test_where_no_type_under_autocast_is_known_all_gradients_take_part():
    tables = [table("a", {-10: 1}, amp_dtype=None), table("b", {-12: 1}, amp_dtype=None)]
    assert [t.name for t in fp16_gradients(capture(*tables))] == ["a", "b"]


def test_one_known_type_leaves_the_unknown_ones_out():
    tables = [table("a", {-10: 1}, amp_dtype=None), table("b", {-12: 1})]
    assert [t.name for t in fp16_gradients(capture(*tables))] == ["b"]


def test_a_gradient_that_is_all_zero_takes_no_part():
    zero = table("w", {}, 0.0, abs_max=None)
    assert fp16_gradients(capture(zero)) == []


def test_no_gradient_at_all_gives_no_window_and_says_why():
    advice = recommend(capture())
    assert (advice.log2_scale, advice.mode, advice.lower_log2, advice.upper_log2) == (None, "none", None, None)
    assert (advice.underflow_before, advice.underflow_after, advice.snippet) == (None, None, None)
    assert advice.reason == "no gradient that is FP16 under autocast was seen"
    assert advice.curve == ()


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


quickly = settings(max_examples=40, deadline=None)
BINS = st.dictionaries(st.integers(-45, 5), st.integers(1, 10**6), min_size=1, max_size=12)


@quickly
@given(st.lists(BINS, min_size=1, max_size=4))
def test_along_the_curve_underflow_falls_and_overflow_grows(all_bins):
    curve = recommend(capture(*(table(f"w{i}", bins) for i, bins in enumerate(all_bins)))).curve
    pairs = list(pairwise(curve))
    assert len(pairs) >= 30
    assert all(a.underflow >= b.underflow and a.energy_lost >= b.energy_lost for a, b in pairs)
    assert all(a.overflow <= b.overflow for a, b in pairs)


# laws


def shifted(bins: dict[int, int], octaves: int) -> dict[int, int]:
    return {e + octaves: n for e, n in bins.items()}


@quickly
@given(st.lists(BINS, min_size=1, max_size=3), st.integers(-20, 20))
def test_gradients_times_a_power_of_two_move_the_window_by_as_many_octaves(all_bins, octaves):
    before = recommend(capture(*(table(f"w{i}", b) for i, b in enumerate(all_bins))))
    after = recommend(capture(*(table(f"w{i}", shifted(b, octaves)) for i, b in enumerate(all_bins))))
    top = max(max(b) for b in all_bins)
    assert before.upper_log2 == min(15 - top - 2, CAP)
    assert after.upper_log2 == min(15 - top - octaves - 2, CAP)
    if before.upper_log2 < CAP and after.upper_log2 < CAP:
        assert after.lower_log2 == before.lower_log2 - octaves


@quickly
@given(BINS, BINS)
def test_one_more_tensor_never_raises_the_upper_end(one, other):
    a, b = table("a", one), table("b", other)
    assert window(a, b)[1] <= window(a)[1]


@quickly
@given(BINS, st.integers(2, 50))
def test_more_elements_of_the_same_spread_leave_the_window_alone(bins, times):
    many = {e: n * times for e, n in bins.items()}
    assert window(table("w", bins)) == window(table("w", many))


@quickly
@given(st.lists(BINS, min_size=1, max_size=3))
def test_a_recommended_scale_lies_inside_its_window(all_bins):
    advice = recommend(capture(*(table(f"w{i}", b) for i, b in enumerate(all_bins))))
    if advice.log2_scale is None:
        assert advice.lower_log2 > advice.upper_log2
    else:
        assert advice.lower_log2 <= advice.log2_scale <= advice.upper_log2


@quickly
@given(st.lists(BINS, min_size=1, max_size=3))
def test_the_order_of_the_tensors_does_not_matter(all_bins):
    tables = [table(f"w{i}", b) for i, b in enumerate(all_bins)]
    assert window(*tables) == window(*reversed(tables))


# the oracle: real casts


def counted(values: torch.Tensor) -> ExponentHistogram:
    exponents = torch.frexp(values[values != 0])[1] - 1
    found, counts = exponents.unique(return_counts=True)
    return ExponentHistogram.from_bins(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def log_normal_gradients(seed: int, centre: float, spread: float, steps: int, elements: int = 1500) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    magnitude = torch.exp2(centre + spread * torch.randn(steps, elements, generator=source))
    return magnitude * torch.randn(steps, elements, generator=source)


def measured_table(name: str, values: torch.Tensor) -> TensorTable:
    return table(name, counted(values).bins, values.abs().amax(dim=1).tolist(), steps=len(values))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-32, -8), st.floats(0.3, 2.5), st.sampled_from((FEW, MANY)))
def test_at_the_recommended_scale_a_thousandth_at_most_becomes_zero_and_nothing_overflows(seed, centre, spread, steps):
    grads = log_normal_gradients(seed, centre, spread, steps)
    advice = recommend(capture(measured_table("w", grads), steps=steps))
    assert advice.log2_scale is not None
    scaled = grads * 2.0**advice.log2_scale
    half = scaled.half()
    assert torch.isfinite(half).all()
    lost = ((half == 0) & (scaled != 0)).sum().item() / (scaled != 0).sum().item()
    assert lost <= 0.001 + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_the_predicted_share_is_what_a_cast_really_loses(seed):
    grads = log_normal_gradients(seed, -24, 3.0, FEW)
    advice = recommend(capture(measured_table("w", grads)))
    for point in advice.curve:
        scaled = grads.double() * 2.0**point.log2_scale
        half = scaled.half()
        assert point.underflow == pytest.approx(((half == 0) & (scaled != 0)).double().mean().item(), abs=2e-5)
        # the binade of 65520..65536 counts as finite
        assert point.overflow == pytest.approx((half.isinf()).double().mean().item(), abs=2e-4)


@pytest.mark.parametrize("seed", range(4))
def test_one_octave_below_the_lower_end_a_cast_loses_more_than_a_thousandth(seed):
    grads = log_normal_gradients(seed, -24, 2.0, FEW)
    advice = recommend(capture(measured_table("w", grads)))
    below = (grads * 2.0 ** (advice.lower_log2 - 1)).half()
    assert (below == 0).double().mean().item() > 0.001


@pytest.mark.parametrize("seed", range(6))
def test_the_reference_formula_gives_the_same_window(seed):
    """The reference implementation of the rule (loss_scale.md, section 6), on two tensors."""
    grads = {n: log_normal_gradients(seed * 2 + i, c, 1.5, FEW) for i, (n, c) in enumerate((("a", -22), ("b", -12)))}
    histograms = {n: counted(g).bins for n, g in grads.items()}
    maxima = {n: g.abs().amax(dim=1).tolist() for n, g in grads.items()}
    advice = recommend(capture(*(measured_table(n, g) for n, g in grads.items())))
    assert (advice.lower_log2, advice.upper_log2) == reference_window(histograms, maxima)


def reference_window(histograms: dict[str, dict[int, int]], maxima: dict[str, list[float]]) -> tuple[int, int]:
    top, steps = math.log2(65504), max(map(len, maxima.values()))

    def tail(series: Sequence[float]) -> float:
        x = [math.log2(v) for v in series]
        mu = sum(x) / len(x)
        return mu + 3.09 * math.sqrt(sum((v - mu) ** 2 for v in x) / len(x))

    together = [max(a[t] for a in maxima.values()) for t in range(steps)]
    observed = math.floor(top - math.log2(max(together))) - 2
    by_tail = min(math.floor(top - tail(a)) for a in (*maxima.values(), together))
    flushed = lambda h, k: sum(n for e, n in h.items() if e + k <= -26)
    everything = sum(sum(h.values()) for h in histograms.values())
    ok = lambda k: (
        sum(flushed(h, k) for h in histograms.values()) <= 1e-3 * everything
        and all(flushed(h, k) <= 0.05 * sum(h.values()) for h in histograms.values())
    )
    return next(k for k in range(-149, 150) if ok(k)), min(observed, by_tail, 24)


# the snippet


def run_snippet(advice: LossScaleAdvice) -> tuple[torch.nn.Module, torch.Tensor, dict[str, Any]]:
    """Run the snippet as it is pasted, with the GPU's name replaced by the CPU's."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    before = model.weight.detach().clone()
    names = {
        "torch": torch,
        "model": model,
        "batch": torch.ones(8, 4),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "compute_loss": lambda model, batch: model(batch).float().pow(2).mean(),
    }
    assert '"cuda"' in advice.snippet
    exec(advice.snippet.replace('"cuda"', '"cpu"').replace("torch.float16", "torch.bfloat16"), names)
    return model, before, names


@pytest.mark.parametrize(
    ("tables", "steps", "log2_scale", "growth_interval"),
    [
        ([table("w", {-30: 1000})], FEW, 20, 2000),
        ([table("w", {-33: 1000, 3: 1}, 2.0**3)], FEW, 8, 8000),
        ([table("w", {-25: 1000}, 2.0**-15, steps=MANY)], MANY, 20, 10**9),
        ([table("w", {-10: 1000, 20: 1}, 2.0**20)], FEW, -11, 2000),
    ],
)
def test_the_snippet_trains_with_the_recommended_scaler(tables, steps, log2_scale, growth_interval):
    model, before, names = run_snippet(recommend(capture(*tables, steps=steps)))
    scaler = names["scaler"]
    assert scaler.get_scale() == 2.0**log2_scale
    assert scaler.get_growth_interval() == growth_interval
    assert not torch.equal(model.weight, before)
    assert model.weight.grad is None


def test_the_snippet_without_a_scale_trains_without_a_scaler():
    advice = recommend(capture(table("w", {-10: 1000})))
    model, before, names = run_snippet(advice)
    assert advice.mode == "none"
    assert "scaler" not in names
    assert not torch.equal(model.weight, before)


def group(optimizer: str) -> OptimizerGroup:
    return OptimizerGroup(optimizer, "SGD", "float32", 4, "weight")


TWO = (group("d"), group("g"))
IN_TURN = """\
losses = iter(compute_losses(model, batch))
for name in ("d", "g"):
    with torch.autocast("cuda", dtype=torch.float16):
        _, loss = next(losses)
    scaler.scale(loss).backward()
    scaler.step(optimizers[name])
    model.zero_grad()
scaler.update()  # once, after all of them
"""
TOGETHER = """\
with torch.autocast("cuda", dtype=torch.float16):
    loss = compute_loss(model, batch)
scaler.scale(loss).backward()
for optimizer in optimizers.values():
    scaler.step(optimizer)
scaler.update()  # once, after all of them
model.zero_grad()
"""


@pytest.mark.parametrize(
    ("losses", "expected"), [(("d", "g"), IN_TURN), ((), IN_TURN), (("loss",), TOGETHER)], ids=["own", "unseen", "one"]
)
@pytest.mark.parametrize("bins", [{-30: 1000}, {-10: 1000}], ids=["scaled", "unscaled"])
def test_the_snippet_steps_each_of_several_optimizers_and_updates_the_scale_once(losses, expected, bins):
    facts = LoopFacts({"float32": 4}, TWO, losses=losses)
    advice = recommend(capture(table("w", bins), loop=facts))
    if advice.mode == "none":
        expected = expected.replace("scaler.update()  # once, after all of them\n", "")
        expected = expected.replace("scaler.scale(loss)", "loss").replace("scaler.step(optimizer)", "optimizer.step()")
        expected = expected.replace("scaler.step(optimizers[name])", "optimizers[name].step()")
    assert advice.snippet.endswith(expected)
    models = {name: torch.nn.Linear(4, 1) for name in "dg"}
    model = torch.nn.ModuleDict(models)
    before = {name: each.weight.detach().clone() for name, each in models.items()}

    def compute_losses(model, batch):
        for name in "dg":
            yield name, model[name](batch).float().pow(2).mean()

    names = {
        "torch": torch,
        "model": model,
        "batch": torch.ones(8, 4),
        "optimizers": {name: torch.optim.SGD(each.parameters(), lr=0.1) for name, each in models.items()},
        "compute_losses": compute_losses,
        "compute_loss": lambda model, batch: sum(loss for _, loss in compute_losses(model, batch)),
    }
    exec(advice.snippet.replace('"cuda"', '"cpu"').replace("torch.float16", "torch.bfloat16"), names)
    assert all(not torch.equal(models[name].weight, before[name]) for name in "dg")
    assert all(p.grad is None for p in model.parameters())


def test_for_one_optimizer_and_for_unknown_code_the_snippet_stays():
    one = LoopFacts({"float32": 4}, (group("loss"), group("loss")))
    for code in (BF16_SNIPPET, TF32_SNIPPET, "train()\n"):
        assert for_all_optimizers(code, one) == for_all_optimizers(code, None) == code
    two = LoopFacts({"float32": 4}, TWO)
    assert for_all_optimizers("train()\n", two) == "train()\n"
    for code in (BF16_SNIPPET, TF32_SNIPPET):
        written = for_all_optimizers(code, two)
        compile(written, "", "exec")
        assert "optimizers[name].step()" in written
        assert for_all_optimizers(written, two) == written


def test_fp16_is_the_format_of_the_rule():
    assert (FP16.max, FP16.rounds_to_zero) == (65504.0, 2.0**-25)
