"""Where the time of the kernels of a trace went: shares of a step, casts, the host's waits, and kernels by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.costs.kernels import HostWait
from mpdiag.measure.intervals import union_us
from mpdiag.measure.kernel_shares import host_waits, is_cast, kernel_time, named_kernels
from mpdiag.measure.trace_events import Trace, TracedOp, TracedWait
from trace_samples import kernel, one_step


def test_waits_of_one_call_operator_and_module_are_one_line_and_per_step():
    waits = [TracedWait("s", 0.0, 10.0, 0, "aten::item", None), TracedWait("s", 50.0, 30.0, 1, "aten::item", None),
             TracedWait("s", 90.0, 100.0, 1, "aten::item", "fc")]  # fmt: skip
    work = (kernel(0.0, 10.0), kernel(40.0, 40.0), kernel(88.0, 90.0))
    assert host_waits(Trace(work, 2, 100.0, tuple(waits))) == (
        HostWait("s", "aten::item", "fc", 0.5, 0.05, pytest.approx(0.006)),
        HostWait("s", "aten::item", None, 1.0, 0.02, pytest.approx(0.019)),
    )


def test_the_shares_of_a_step_are_exact():
    time = kernel_time(one_step().read(), step_ms=0.5)
    assert time is not None
    assert time.steps == 1
    assert time.kernels == 6
    assert time.total_ms == pytest.approx(0.1)
    assert time.by_class == pytest.approx({"yes": 0.7, "no": 0.3, "ambiguous": 0.0, "unknown": 0.0})
    assert time.by_dtype == pytest.approx({"float16": 0.75, "float32": 0.15, "not known": 0.1})
    assert time.tensor_by_dtype == pytest.approx({"float16": 0.7})
    assert (time.matrix_share, time.cast_share) == pytest.approx((0.7, 0.05))
    assert (time.transpose_share, time.optimizer_share) == pytest.approx((0.0, 0.1))
    assert time.memcpy_ms == pytest.approx(0.02)
    assert time.median_kernel_us == 10
    assert time.busy_ms == pytest.approx(0.12)
    assert (time.step_ms, time.step_traced, time.busy_share) == pytest.approx((0.5, False, 0.24))
    assert [(k.name[:5], k.calls, k.time_ms) for k in time.top[:2]] == [("cutla", 1, 0.04), ("nvjet", 1, 0.03)]


def test_without_a_timed_step_the_traced_one_stands_in_and_says_so():
    time = kernel_time(one_step().read(), step_ms=None)
    assert time is not None
    assert (time.step_ms, time.step_traced) == (0.9, True)


def test_a_trace_without_kernels_has_no_shares():
    assert kernel_time(Trace((), 1, 100.0), None) is None
    assert kernel_time(Trace((), 0, 0.0), None) is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=12))
def test_the_union_of_kernels_counts_every_instant_once(spans):
    brute = {t for start, length in spans for t in range(start, start + length)}
    assert union_us([kernel(s, d) for s, d in spans]) == len(brute)


@pytest.mark.parametrize(
    ("op", "dtypes", "expected"),
    [
        ("aten::copy_", ("float16", "float32"), True),
        ("aten::copy_", ("float32", "bfloat16", "Scalar"), True),
        ("aten::copy_", ("float16", "float16"), False),
        ("aten::copy_", ("float32", "long int"), False),
        ("aten::add", ("float16", "float32"), False),
        ("aten::copy_", (), False),
    ],
)
def test_a_cast_is_a_copy_between_floating_types(op, dtypes, expected):
    assert is_cast(kernel(0, 1, op=TracedOp(op, (), (), dtypes, None))) is expected
    assert is_cast(kernel(0, 1)) is False


def test_kernels_of_one_name_and_operator_are_one_line_and_per_step():
    rows = named_kernels([kernel(0, 3000), kernel(9, 1000), kernel(20, 500, name="other")], steps=2)
    assert [(r.name, r.calls, r.time_ms, r.tensor_cores) for r in rows] == [
        ("k", 1.0, 2.0, "unknown"),
        ("other", 0.5, 0.25, "unknown"),
    ]
