"""The ends of the loss scale's window and the gradients that set them: exact numbers on tables written by hand."""

from __future__ import annotations

import math

from loss_scale_samples import ACTIVATION, MANY, WEIGHT, capture, table, window
from mpdiag.advice.loss_scale import recommend
from mpdiag.advice.scale_window import CAP, fp16_gradients
from mpdiag.diagnosis import TensorKind

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
