"""A trace that an H100 wrote is read, shared out and told as on paper."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from mpdiag.costs.kernels import SCALERS_READ, HostWait
from mpdiag.measure.kernel_shares import kernel_time
from mpdiag.measure.step_findings import findings_of
from mpdiag.measure.trace_events import Trace, TracedWait, read_trace

# --- a real trace: one FP16 step of two Linears with ReLU between, cross entropy, AdamW and a GradScaler,
# --- on an H100 with torch 2.11.0 and CUDA 13.0


@pytest.fixture(scope="module")
def h100() -> Trace:
    packed = (Path(__file__).parents[1] / "samples" / "h100_trace.json.gz").read_bytes()
    return read_trace(json.loads(gzip.decompress(packed)))


def test_every_kernel_of_a_real_step_has_its_operator_and_its_module(h100):
    assert (h100.steps, len(h100.kernels)) == (1, 45)
    assert all(k.op is not None for k in h100.kernels)
    products = [(k.module, k.phase, k.op.name, k.op.dtype) for k in h100.kernels if k.name.startswith("nvjet")]
    assert sorted(products) == [
        ("0", "backward", "aten::mm", "float16"),
        ("0", "forward", "aten::addmm", "float16"),
        ("2", "backward", "aten::mm", "float16"),
        ("2", "backward", "aten::mm", "float16"),
        ("2", "forward", "aten::addmm", "float16"),
    ]
    counts = Counter((k.module, k.phase) for k in h100.kernels if not k.copy)
    assert counts == {
        ("0", "forward"): 4,
        ("1", "forward"): 1,
        ("2", "forward"): 3,
        ("2", "backward"): 5,
        ("1", "backward"): 1,
        ("0", "backward"): 4,
        (None, "forward"): 9,  # the loss, its scaling, the scaler's own numbers
        (None, "backward"): 5,
        (None, "optimizer"): 10,
    }


def test_the_shares_of_a_real_step_add_up_and_no_name_of_it_is_unknown(h100):
    time = kernel_time(h100, None)
    assert time is not None
    assert sum(time.by_class.values()) == pytest.approx(1)
    assert sum(time.by_dtype.values()) == pytest.approx(1)
    assert (time.by_class["ambiguous"], time.by_class["unknown"]) == (0, 0)
    assert time.tensor_by_dtype == {"float16": pytest.approx(time.by_class["yes"])}
    assert time.kernels == 42
    assert time.cast_share > 0.1
    assert time.busy_share < 0.1  # forty kernels of two microseconds in a step of four milliseconds


def test_the_only_wait_of_a_real_step_is_the_gradscalers(h100):
    at, lasted = pytest.approx(3848.778), pytest.approx(11.353)
    assert h100.waits == (TracedWait("cudaStreamSynchronize", at, lasted, 0, SCALERS_READ, None),)
    time = kernel_time(h100, None)
    assert time is not None
    # the GPU's own copy of the number ended before it returned; its next kernel is the optimizer's first
    waited, lost = pytest.approx(0.011353), pytest.approx(4.245151 - 3.849431)
    assert time.waits == (HostWait("cudaStreamSynchronize", SCALERS_READ, None, 1.0, waited, lost),)
    # 0.3 % of a step that waits for its launches anyway
    assert [f.code for f in findings_of(time, "FP16", None)][:2] == ["launch-bound", "casts"]
