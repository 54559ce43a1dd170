"""The loss scale's laws on any gradients, and real FP16 casts as its oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loss_scale_samples import FEW, MANY, capture, table, window
from mpdiag.advice.loss_scale import recommend
from mpdiag.advice.scale_window import CAP
from mpdiag.diagnosis import TensorTable
from mpdiag.histogram import ExponentHistogram

quickly = settings(max_examples=40, deadline=None)
BINS = st.dictionaries(st.integers(-45, 5), st.integers(1, 10**6), min_size=1, max_size=12)


# laws


@quickly
@given(st.lists(BINS, min_size=1, max_size=4))
def test_along_the_curve_underflow_falls_and_overflow_grows(all_bins):
    curve = recommend(capture(*(table(f"w{i}", bins) for i, bins in enumerate(all_bins)))).curve
    pairs = list(pairwise(curve))
    assert len(pairs) >= 30
    assert all(a.underflow >= b.underflow and a.energy_lost >= b.energy_lost for a, b in pairs)
    assert all(a.overflow <= b.overflow for a, b in pairs)


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
