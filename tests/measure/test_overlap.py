"""Kernels that overlap on several streams: a layer's time, share, rate and gains are by the clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.costs.kernels import Flops, LayerUse
from mpdiag.costs.tensor_cores import Ceilings
from mpdiag.measure.intervals import merged
from mpdiag.measure.kernel_shares import kernel_time
from mpdiag.measure.layers import layers_of
from mpdiag.measure.trace_events import Trace, TracedKernel, TracedOp
from mpdiag.measure.why_not import ModuleFacts

NVJET, TO_NHWC = "nvjet_sm90_hsh_128x128_64x4_1x1_h_bz_TNN", "void cudnn::ops::nchwToNhwcKernel<__half, __half, float>"
RNN = TracedOp("aten::_cudnn_rnn", ((2, 3, 4),), ((12, 4, 1),), ("float16",), "float16")
CEILINGS = Ceilings({"FP16": 600.0, "FP32": 50.0}, None, 8192, 1.0)


def kernel(start: float, end: float, module: str = "rnn", name: str = NVJET, phase: str = "forward",
           step: int = 0) -> TracedKernel:  # fmt: skip
    return TracedKernel(name, start, end - start, step, RNN, module, phase)


def layers(*kernels: TracedKernel, steps: int = 1) -> dict[str, LayerUse]:
    flops = Flops(0, 0, 0, {"rnn": (10**9, 2 * 10**9)})
    facts = {"rnn": ModuleFacts("LSTM", 1, 0, False), "head": ModuleFacts("Linear", 1, 0, False)}
    found = layers_of(Trace(kernels, steps, 1000.0), facts, "FP16", flops, CEILINGS, lambda products: {})
    return {layer.name: layer for layer in found}


TWO_STREAMS = (
    kernel(0, 10), kernel(0, 10),  # 10 us by the clock
    kernel(20, 30, phase="backward"), kernel(24, 40, phase="backward"),  # 20 us
    kernel(50, 60, "head"),
)  # fmt: skip


def test_kernels_that_overlap_count_once_in_a_layers_time_share_and_rate():
    rnn = layers(*TWO_STREAMS)["rnn"]
    assert (rnn.forward_ms, rnn.backward_ms) == pytest.approx((0.010, 0.020))
    assert rnn.time_share == pytest.approx(30 / 40)
    assert rnn.tflops_per_s == pytest.approx(100.0)  # 3 GFLOP in 30 us
    assert rnn.of_ceiling == pytest.approx(1 / 6)


def test_the_layers_shares_are_of_the_time_in_which_any_kernel_ran():
    assert sum(layer.time_share for layer in layers(*TWO_STREAMS).values()) == pytest.approx(1)


def test_times_are_per_step_and_steps_do_not_cover_each_other():
    again = tuple(
        TracedKernel(k.name, k.start_us + 100, k.duration_us, 1, k.op, k.module, k.phase) for k in TWO_STREAMS
    )
    assert layers(*TWO_STREAMS, *again, steps=2)["rnn"].backward_ms == pytest.approx(0.020)


def test_a_gain_is_of_the_time_by_the_clock_too():
    alone = layers(kernel(0, 90), kernel(90, 100, name=TO_NHWC))["rnn"].why_not
    beside = layers(kernel(0, 100), kernel(0, 100, name=TO_NHWC))["rnn"].why_not
    assert [(why.code, why.gain_ms) for why in alone] == [("nchw-transposes", pytest.approx(0.010))]
    assert [why.gain_ms for why in beside] == [pytest.approx(0.050)]  # half of 0.1 ms, and not all of it


def test_a_steps_kernels_are_added_up_beside_the_time_in_which_the_gpu_worked():
    time = kernel_time(Trace(TWO_STREAMS, 1, 100.0), step_ms=0.05)
    assert time is not None
    assert (time.total_ms, time.busy_ms, time.busy_share) == pytest.approx((0.056, 0.040, 0.8))


def test_a_trace_that_worked_for_longer_than_the_timed_step_keeps_its_ratio():
    time = kernel_time(Trace(TWO_STREAMS, 1, 100.0), step_ms=0.02)
    assert time is not None
    assert time.busy_share == pytest.approx(2.0)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=12))
def test_merged_stretches_are_apart_in_order_and_cover_what_the_kernels_do(spans):
    found = merged([kernel(start, start + length) for start, length in spans])
    assert all(end < start for (_, end), (start, _) in pairwise(found))
    covered = {t for start, end in found for t in range(int(start), int(end))}
    assert covered == {t for start, length in spans for t in range(start, start + length)}
