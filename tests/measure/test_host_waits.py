"""Waits of the host for the GPU: when they are a finding, and what of them is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.costs.kernels import SCALERS_READ, HostWait, KernelTime
from mpdiag.measure.intervals import lost_us, merged
from mpdiag.measure.step_findings import findings_of
from mpdiag.measure.trace_events import TracedKernel, TracedWait

CALM = KernelTime(1, 100, 10.0, {}, {}, {}, 0.8, 0.0, 0.0, 0.0, 0.0, 50.0, 9.9, 10.0, False, 0.99)  # 10 ms a step
ITEM = HostWait("cudaStreamSynchronize", "aten::item", "head", 2.0, 3.14, 0.6)
SCALERS = HostWait("cudaStreamSynchronize", SCALERS_READ, None, 1.0, 1.1, 0.25)
BARE = HostWait("cudaDeviceSynchronize", None, None, 1.0, 0.5, 0.05)


def codes(*waits: HostWait, busy: float = 0.99, **more: float) -> list[str]:
    time = replace(CALM, waits=waits, busy_share=busy, busy_ms=10 * busy, **more)
    return [f.code for f in findings_of(time, "FP16", None)]


def test_the_hosts_waits_are_named_with_their_time_and_operator():
    (found,) = findings_of(replace(CALM, waits=(ITEM, SCALERS, BARE)), "FP16", None)
    assert found.text == (
        "the host waits for the GPU in 4 calls a step, 4.7 ms of a traced step: "
        "cudaStreamSynchronize in aten::item of head, 3.1 ms; "
        "cudaStreamSynchronize in GradScaler.step (aten::item), 1.1 ms; "
        "cudaDeviceSynchronize in no operator (torch.cuda.synchronize(), say), 0.5 ms"
    )
    (more,) = findings_of(replace(CALM, waits=(ITEM, SCALERS, BARE, BARE)), "FP16", None)
    assert more.text.endswith("; and more")
    (one,) = findings_of(replace(CALM, waits=(BARE,)), "FP16", None)
    assert "in 1 call a step, 0.5 ms" in one.text


def test_what_is_lost_is_the_time_in_which_the_gpu_has_nothing_to_do_and_not_the_wait():
    (found,) = findings_of(replace(CALM, waits=(ITEM, SCALERS)), "FP16", None)
    assert found.gain_ms is None
    assert found.gain_from == (
        "not measured: at most 0.85 ms of a traced step, in which the GPU has nothing to do during these waits or "
        "right after them"
    )
    (free,) = findings_of(replace(CALM, waits=(replace(ITEM, lost_ms=0.09),)), "FP16", None)
    assert free.gain_from == "little to gain: the GPU has work during these waits and right after them"
    (older,) = findings_of(replace(CALM, waits=(replace(ITEM, lost_ms=None),)), "FP16", None)
    assert older.gain_from == "not measured: while the host waits it queues nothing"


def test_a_wait_of_less_than_a_hundredth_of_the_step_is_none_however_idle_the_gpu_is():
    # digits_cnn's FP16 step on an H100: 0.012 of 3.1 ms, the GPU 10 % busy
    short = replace(SCALERS, time_ms=0.012, lost_ms=0.4)
    assert codes(short, busy=0.1, step_ms=3.13) == ["gpu-waits"]
    assert codes(replace(ITEM, time_ms=0.099)) == []
    assert codes(replace(ITEM, time_ms=0.101)) == ["host-waits"]


def test_a_wait_of_a_twentieth_of_the_step_is_told_however_busy_the_gpu_is():
    # resnet50's FP16 step on an H100: 3.56 of 31.0 ms, 7.1 of them idle
    scalers = replace(SCALERS, time_ms=3.56, lost_ms=2.1)
    assert codes(scalers, busy=0.772, step_ms=31.0) == ["host-waits"]
    assert codes(replace(scalers, lost_ms=None), busy=0.772, step_ms=31.0) == ["host-waits"]
    assert codes(replace(scalers, time_ms=1.5), busy=0.772, step_ms=31.0) == []  # a GradScaler's, and the GPU works


def test_a_gradscalers_number_read_while_the_gpu_has_work_is_no_finding():
    # the host is far ahead: it waits for most of the backward pass, and the optimizer's kernels follow at once
    assert codes(replace(SCALERS, time_ms=6.0, lost_ms=0.05)) == []
    assert codes(replace(SCALERS, time_ms=6.0, lost_ms=0.05), busy=0.5) == ["gpu-waits"]
    assert codes(replace(ITEM, time_ms=6.0, lost_ms=0.05)) == ["host-waits"]  # the loop's own, and so a line


def test_a_gradscalers_wait_that_costs_something_is_told_with_the_gpus_and_how_to_avoid_it():
    time = replace(CALM, waits=(SCALERS,), busy_share=0.5, cast_share=0.2)
    found = findings_of(time, "FP16", None)
    assert [f.code for f in found] == ["gpu-waits", "host-waits", "casts"]
    assert found[1].remedy.startswith("a fused optimizer")


# what is lost, from the trace


def kernel(start: float, end: float) -> TracedKernel:
    return TracedKernel("k", start, end - start, 0, None, None, "other")


def wait(start: float, end: float) -> TracedWait:
    return TracedWait("cudaStreamSynchronize", start, end - start, 0, None, None)


@pytest.mark.parametrize(
    ("busy", "waits", "lost"),
    [
        ([(0, 100), (130, 200)], [(40, 105)], [30.0]),  # the GPU idles from 100 until its next work at 130
        ([(0, 200)], [(40, 105)], [0.0]),  # another stream's work goes on
        ([(0, 60), (80, 100), (100, 200)], [(40, 100)], [20.0]),  # a gap within, none after
        ([(0, 100)], [(40, 105)], [5.0]),  # nothing follows: until the wait returned
        ([(130, 200)], [(40, 105)], [90.0]),
        ([], [(40, 105)], [65.0]),
        ([(0, 100), (130, 200)], [(40, 105), (110, 115)], [30.0, 0.0]),  # no instant twice
        ([(0, 100), (130, 200)], [(110, 115), (40, 105)], [0.0, 30.0]),  # in whatever order they come
    ],
)
def test_lost_is_what_the_gpu_idles_during_a_wait_and_until_its_next_work(busy, waits, lost):
    assert lost_us([wait(*each) for each in waits], merged([kernel(*each) for each in busy])) == lost


SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda s: (s[0], s[0] + s[1])), max_size=10)


@given(SPANS, SPANS)
def test_waits_lose_no_more_than_the_gpu_idles_and_at_least_what_it_idles_in_them(busy, waits):
    lost = lost_us([wait(*each) for each in waits], merged([kernel(*each) for each in busy]))
    working = {t for start, end in busy for t in range(start, end)}
    during = {t for start, end in waits for t in range(start, end)} - working
    assert all(each >= 0 for each in lost)
    assert len(during) <= sum(lost) <= 75 - len(working)  # no span ends after 70
