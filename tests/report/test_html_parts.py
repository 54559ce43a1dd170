"""The parts of the HTML report: anchors, strips, charts and numbers, without a page around them."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

import report_samples as samples
from mpdiag.diagnosis import Finding, LossScaleAdvice, ScalePoint, TensorKind
from mpdiag.histogram import ExponentHistogram
from mpdiag.report import charts, curves, html_axes, html_numbers, strips
from mpdiag.report.html_anchors import Anchors, TensorLinks, slug
from mpdiag.report.html_gaps import Gap, GapAxis, gap_axis, gaps

THIN = "\u202f"


def test_a_gap_breaks_the_line() -> None:
    trial = dataclasses.replace(samples.trials()[0], losses=(3.0, 2.0, float("nan"), 1.0, 0.5))
    drawn = str(curves.loss_curves((trial,)))
    path = drawn.split('class="line arm-0" d="')[1].split('"')[0]
    assert path.count("M") == 2


def test_losses_that_are_all_infinite_draw_no_chart() -> None:
    trial = dataclasses.replace(samples.trials()[0], losses=(float("inf"),) * 3)
    assert curves.loss_curves((trial,)) is None
    assert charts.loss_figure((trial,)) is None


def test_equal_findings_get_different_ids() -> None:
    anchors = Anchors()
    assert [anchors.claim("MP101-a"), anchors.claim("MP101-a")] == ["MP101-a", "MP101-a-2"]


def test_a_slug_keeps_the_letters_of_a_name() -> None:
    assert slug("blocks.0/attn <b>") == "blocks.0-attn-b"


def test_a_binding_name_that_is_no_tensor_has_no_row() -> None:
    links = TensorLinks(samples.tables(), Anchors())
    assert links.binding("the loss itself") == ("the loss itself", None)
    assert links.binding("head (activation)") == ("head", "tensor-activation-head")


def test_a_finding_on_a_module_leads_to_its_first_row() -> None:
    kinds = TensorKind
    seen = [samples.table(*x, 0.0) for x in (("a.weight", kinds.WEIGHT), ("a.b", kinds.ACTIVATION_GRADIENT))]
    finding = Finding("MP1", "x", "info", "a", "it is", {}, "none")
    assert TensorLinks(seen[:1], Anchors()).of_finding(finding) == "tensor-weight-a.weight"
    assert TensorLinks(seen, Anchors()).of_finding(finding) == "tensor-activation_gradient-a.b"
    assert TensorLinks(seen, Anchors()).find("a.weigh") is None


def test_a_finding_about_an_operation_leads_to_the_table_of_operations():
    links = TensorLinks(samples.tables(), Anchors())
    name = samples.tables()[0].name
    for code, evidence, leads in (
        ("MP110", {}, True),
        ("MP105", {"operation": "mul"}, True),
        ("MP105", {}, False),
        ("MP101", {"operation": "mul"}, False),
    ):
        row = links.of_finding(Finding(code, "n", "error", name, "m", evidence, "r"))
        assert (row == "operations") is leads
        assert row is not None


def test_seeds_that_stop_at_one_step_share_a_sentence() -> None:
    broken = samples.trials()[-1]
    told = curves.stopped([broken, dataclasses.replace(broken, seed=4)])
    assert told == ["fp16-pure, seeds 0, 4: the loss is NaN from step 42 on."]


def test_ticks_are_round_and_inside() -> None:
    assert html_axes.ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_diverging_arm_does_not_squash_the_others() -> None:
    calm = dataclasses.replace(samples.trials()[0], losses=(2.0, 1.0))
    wild = dataclasses.replace(samples.trials()[-1], losses=(2.0, 1e30))
    assert curves.loss_range((calm, wild)) == (0.92, 3.08)


# distance from FP32


def test_a_gap_is_the_largest_of_the_seeds_and_nan_where_one_is() -> None:
    runs = [samples.run_of("fp32", seed) for seed in (0, 1)]
    runs += [
        samples.run_of("fp16", 0, losses=(4.0, 3.5, 2.0, 1.0)),
        samples.run_of("fp16", 1, losses=(4.0, 2.0, math.nan)),
    ]
    (found,) = gaps(runs)
    assert found.arm == "fp16"
    assert found.values[:2] == (0.0, 1.0)
    assert math.isnan(found.values[2])
    assert found.values[3] == 0.0


def test_a_gap_of_zero_lies_one_decade_below_the_smallest() -> None:
    axis = gap_axis([Gap("fp16", 1, (0.0, 0.003, 0.2))])
    assert axis == GapAxis(-3, 0)
    assert axis.position(0.0) == -4
    assert axis.position(0.01) == -2
    assert axis.decades == [-3, -2, -1, 0]


def test_the_axis_of_gaps_holds_the_margin_and_no_more_than_twelve_decades() -> None:
    assert gap_axis([Gap("fp16", 1, (1e-30, 0.2))], margin=50.0) == GapAxis(-10, 2)
    assert GapAxis(-10, 2).decades == [-10, -8, -6, -4, -2, 0, 2]
    assert GapAxis(-10, 2).position(1e-30) == -10


def test_arms_equal_to_fp32_have_no_distance_to_draw() -> None:
    runs = [samples.run_of("fp32"), samples.run_of("fp16")]
    assert curves.gap_curves(runs) is None
    assert charts.gap_figure(runs) is None
    assert curves.gap_curves([]) is None


def test_the_gap_figure_has_a_line_an_arm_the_margin_and_a_zero() -> None:
    runs = [samples.run_of("fp32"), samples.run_of("fp16", losses=(4.0, 3.0625, math.nan, 1.0))]
    figure = charts.gap_figure(runs, margin=0.1)
    assert figure is not None
    assert figure["data"][0]["y"] == [-3, math.log10(0.0625), None, -3]
    assert figure["layout"]["yaxis"]["ticktext"][:2] == ["0", "10<sup>−2</sup>"]
    assert figure["layout"]["shapes"][0]["y0"] == -1
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure


def test_the_gap_chart_draws_the_margin_and_breaks_at_nan() -> None:
    runs = [samples.run_of("fp32"), samples.run_of("fp16", losses=(4.1, 3.01, math.nan, 1.1))]
    drawn = str(curves.gap_curves(runs, margin=0.1))
    assert drawn.count('class="margin"') == 1
    assert drawn.split('class="line arm-1"')[1].split('d="')[1].split('"')[0].count("M") == 2


# strips and charts


@pytest.mark.parametrize(
    ("exponent", "zone"), [(-26, "under"), (-25, "sub"), (-15, "sub"), (-14, "norm"), (15, "norm"), (16, "over")]
)
def test_a_binade_belongs_to_the_zone_that_fp16_gives_it(exponent: int, zone: str) -> None:
    assert strips.zone_of(exponent) == zone


def test_the_axis_always_shows_the_fp16_limits() -> None:
    axis = strips.axis_for([ExponentHistogram(0, (1,))])
    assert axis.low < -25
    assert axis.high > 16


def test_an_occupied_binade_never_disappears_from_a_strip() -> None:
    axis = strips.StripAxis(-32, 24)
    drawn = str(strips.strip(ExponentHistogram.from_bins({0: 10**9, 17: 1}), axis))
    assert 'class="z-over"' in drawn


def test_what_lies_beyond_the_axis_stands_in_its_last_binade() -> None:
    axis = strips.StripAxis(-32, 24)
    far = str(strips.strip(ExponentHistogram.from_bins({-140: 1}), axis))
    assert 'd="M0 36v-32' in far


def test_noise_is_hatched_and_does_not_move_with_the_scale() -> None:
    axis = strips.StripAxis(-48, 24)
    noisy = samples.partly_noise()
    drawn = str(strips.strip(noisy.histogram, axis, 10, noisy.noise_floor_log2))
    assert drawn.count('<path class="z-noise" fill="url(#noise-hatch)"') == 1
    assert drawn.split('class="moved" d="M')[1].split(" ")[0] == f"{axis.x(-27 + 10):g}"
    assert 'id="noise-hatch"' in strips.ground(axis)


def test_figures_are_plain_json_without_the_default_template() -> None:
    scale = LossScaleAdvice(2, "dynamic", 1, 3, {}, 0.1, 0.0, 0.1, 0.0, None, "", 2000, (ScalePoint(0, 0.5, 1e-9, 0),))
    figure = charts.loss_scale_figure(scale)
    assert figure is not None
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure
    assert "template" not in figure["layout"]
    assert figure["data"][1]["y"] == [-6.0]
    assert figure["data"][1]["text"] == [html_numbers.value(1e-7)]


def test_a_non_finite_loss_is_null_in_the_figure() -> None:
    figure = charts.loss_figure(samples.trials())
    assert figure is not None
    assert figure["data"][-1]["y"][41] is None


# numbers


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0, "0"), (1e-9, "<0.01"), (0.0003, "0.03"), (0.124, "12.4"), (0.9999, ">99.9"), (1.0, "100"),
     (1 + 1e-15, "100"), (1.006, "100.6"), (1.217, "121.7")],
)  # fmt: skip
def test_a_share_is_never_rounded_to_zero_or_to_all_and_never_cut_off(fraction: float, text: str) -> None:
    assert html_numbers.share(fraction) == f"{text}{THIN}%"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.25, "0.25"), (50257.0, "50257"), (-25.0, "−25"), (float("nan"), "NaN"), (float("-inf"), "−inf")],
)
def test_a_number_is_printed_for_people(number: float, text: str) -> None:
    assert html_numbers.value(number) == text


def test_a_tiny_number_is_a_power_of_ten() -> None:
    assert html_numbers.value(3.1e-5) == f"3.1{THIN}×{THIN}10<sup>−5</sup>"


@pytest.mark.parametrize(("energy", "text"), [(1.5, "1.5 J"), (0.08969, "89.69 mJ"), (4e-6, "4 µJ")])
def test_an_energy_has_its_own_prefix(energy: float, text: str) -> None:
    assert html_numbers.joules(energy) == text.replace(" ", THIN)


@pytest.mark.parametrize(
    ("factor", "text"), [(1.0004, "×1.000 (0_%)"), (0.5, "×0.500 (−50_%)"), (1.25, "×1.250 (+25_%)")]
)
def test_a_ratio_that_rounds_to_nothing_has_no_sign(factor: float, text: str) -> None:
    assert html_numbers.ratio(factor) == text.replace("_", THIN)


def test_bytes_are_binary_multiples() -> None:
    assert html_numbers.size(812 * 2**20) == f"812{THIN}MiB"


def test_prose_raises_exponents_and_escapes_the_rest() -> None:
    assert html_numbers.prose("below 2^-25 <b> `x`") == "below 2<sup>−25</sup> &lt;b&gt; <code>x</code>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("by -4.62e-05, x1.067", "by −4.62_×_10<sup>−5</sup>, ×1.067"),
        ("0.82x the memory, 15% of 3.5 us", "0.82× the memory, 15_% of 3.5_µs"),
        ("2^4..2^17, -0.3..+0.2", "2<sup>4</sup> to 2<sup>17</sup>, −0.3 to +0.2"),
        ("take --seeds 3", 'take <span class="flag">--seeds</span> 3'),
        ("eps=1e-5, dim=-1, fp16-2, x0.weight, `a -3`", "eps=1e-5, dim=-1, fp16-2, x0.weight, <code>a -3</code>"),
    ],
)
def test_prose_sets_numbers_as_the_page_does_and_leaves_code_alone(text: str, shown: str) -> None:
    assert html_numbers.prose(text) == shown.replace("_", THIN)


def test_a_limit_is_a_share_where_the_figure_before_it_is_one() -> None:
    told = html_numbers.facts({"underflow": 0.033, "limit": 0.01, "abs_max": 4.8, "worst_limit": 0.9, "upper_log2": 3})
    assert told == [
        ("underflow", f"3.3{THIN}%"), ("limit", f"1.0{THIN}%"), ("abs max", "4.8"), ("worst limit", "0.9"),
        ("upper", "2<sup>3</sup>"),
    ]  # fmt: skip
