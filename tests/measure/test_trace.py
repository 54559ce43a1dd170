"""A trace of torch.profiler as kernels that know operator, module, phase and step; and where their time went."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.costs.kernels import SCALERS_READ, ArmKernels, Flops, HostWait
from mpdiag.costs.ladder import ladder_of
from mpdiag.costs.tensor_cores import Ceilings
from mpdiag.measure import trace as trace_room
from mpdiag.measure.intervals import union_us
from mpdiag.measure.kernel_shares import host_waits, is_cast, kernel_time, named_kernels
from mpdiag.measure.profiled import exported, kernel_ms
from mpdiag.measure.steady import steady_run
from mpdiag.measure.step_findings import findings_of
from mpdiag.measure.trace import marked_modules, throughput, trace_arm, traced
from mpdiag.measure.trace_events import MODULE, STEP, Trace, TracedKernel, TracedOp, TracedWait, read_trace
from mpdiag.target.job import Job
from mpdiag.training.precision import FP32_IEEE, Precision

MAIN, BACKWARD = 700, 701  # the two CPU threads of a run on a GPU


class Written:
    """A Chrome trace in the form that torch writes with CUDA, event by event."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "ts": 0.0, "pid": 700, "tid": 0, "args": {"name": "python"}},
            {"ph": "X", "cat": "Trace", "name": "PyTorch Profiler (0)", "pid": "Spans", "tid": "PyTorch Profiler",
             "ts": 0.0, "dur": 9000.0, "args": {"Op count": 0}},
        ]  # fmt: skip
        self._next = 0

    def marked(self, name: str, ts: float, dur: float, tid: int = MAIN) -> None:
        self._range("user_annotation", name, ts, dur, tid, {})

    def op(
        self,
        name: str,
        ts: float,
        dur: float,
        tid: int = MAIN,
        inputs: tuple[tuple[str, list[int], list[int]], ...] = (),
        seq: int | None = None,
        fwd: int = 0,
    ) -> int:
        args: dict[str, Any] = {}
        if seq is not None:
            args |= {"Sequence number": seq, "Fwd thread id": fwd}
        if inputs:
            args |= {
                "Concrete Inputs": [""] * len(inputs),
                "Input type": [i[0] for i in inputs],
                "Input Dims": [i[1] for i in inputs],
                "Input Strides": [i[2] for i in inputs],
            }
        return self._range("cpu_op", name, ts, dur, tid, args)

    def _range(self, cat: str, name: str, ts: float, dur: float, tid: int, args: dict[str, Any]) -> int:
        self._next += 1
        full = {"External id": self._next, "Record function id": 0, **args, "Ev Idx": self._next - 1}
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": 700, "tid": tid, "ts": ts, "dur": dur, "args": full}
        )
        return self._next

    def kernel(
        self, name: str, launched: float, ts: float, dur: float, external: int | None, tid: int = MAIN,
        cat: str = "kernel", driver: bool = False, call: str = "cudaLaunchKernel",
    ) -> None:  # fmt: skip
        self._next += 1
        correlation = 10_000 + self._next
        ids = {} if external is None else {"External id": external}
        runtime = ("cuda_driver", "cuLaunchKernelEx") if driver else ("cuda_runtime", call)
        self.events += [
            {"ph": "X", "cat": runtime[0], "name": runtime[1], "pid": 700, "tid": tid, "ts": launched, "dur": 4.0,
             "args": {**ids, "cbid": 211, "correlation": correlation}},
            {"ph": "s", "id": correlation, "pid": 700, "tid": tid, "ts": launched, "cat": "ac2g", "name": "ac2g"},
            {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": 7, "ts": ts, "dur": dur,
             "args": {**ids, "queued": 0, "device": 0, "context": 1, "stream": 7, "correlation": correlation,
                      "registers per thread": 90, "shared memory": 0, "grid": [1, 1, 1], "block": [128, 1, 1]}},
            {"ph": "f", "id": correlation, "pid": 0, "tid": 7, "ts": ts, "cat": "ac2g", "name": "ac2g", "bp": "e"},
        ]  # fmt: skip

    def waits(self, call: str, ts: float, dur: float, external: int | None = None, tid: int = MAIN) -> None:
        """A call that launches nothing: the host waits in it."""
        ids = {} if external is None else {"External id": external}
        self._next += 1
        self.events.append(
            {"ph": "X", "cat": "cuda_runtime", "name": call, "pid": 700, "tid": tid, "ts": ts, "dur": dur,
             "args": {**ids, "cbid": 131, "correlation": 10_000 + self._next}}
        )  # fmt: skip

    def read(self) -> Trace:
        document = {"schemaVersion": 1, "deviceProperties": [], "record_shapes": 1, "traceEvents": self.events}
        return read_trace(json.loads(json.dumps(document)))


HALF = "c10::Half"
X, W = (HALF, [32, 64], [64, 1]), (HALF, [64, 128], [1, 64])


def one_step() -> Written:
    """A step of a model with one Linear called fc: cast, product, backward on its own thread, optimizer, copy."""
    t = Written()
    t.marked(STEP, 100, 900)
    t.marked(f"{MODULE}", 110, 200)
    t.marked(f"{MODULE}fc", 120, 100)
    t.op("aten::linear", 125, 90, inputs=(X, ("float", [128, 64], [64, 1])), seq=5)
    t.op("aten::to", 126, 20, inputs=(("float", [128, 64], [64, 1]),), seq=5)
    copied = t.op("aten::copy_", 128, 10, inputs=((HALF, [128, 64], [64, 1]), ("float", [128, 64], [64, 1])))
    t.kernel("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", 130, 135, 5, copied)
    product = t.op("aten::addmm", 160, 40, inputs=((HALF, [128], [1]), X, W, ("Scalar", [], [])), seq=7)
    t.kernel("nvjet_sm90_hsh_128x128_64x4_1x1_h_bz_TNN", 165, 200, 30, product, driver=True)
    loss = t.op("aten::_log_softmax", 250, 20, inputs=(("float", [32, 128], [128, 1]),), seq=9)
    t.kernel("void (anonymous namespace)::softmax_warp_forward<float>", 255, 260, 10, loss)
    t.op("autograd::engine::evaluate_function: AddmmBackward0", 400, 100, BACKWARD, seq=7, fwd=1)
    t.op("AddmmBackward0", 402, 80, BACKWARD, inputs=((HALF, [32, 128], [128, 1]),), seq=7, fwd=1)
    mm = t.op("aten::mm", 405, 30, BACKWARD, inputs=((HALF, [128, 32], [1, 128]), X))
    t.kernel("cutlass_75_tensorop_f16_s1688gemm_f16_128x128_nt_align1", 410, 420, 40, mm, BACKWARD)
    t.op("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 510, 20, BACKWARD)
    added = t.op("aten::add_", 512, 10, BACKWARD, inputs=(("float", [128, 64], [64, 1]),) * 2)
    t.kernel("void at::native::vectorized_elementwise_kernel<4>", 514, 520, 5, added, BACKWARD)
    t.marked("Optimizer.step#AdamW.step", 700, 200)
    adam = t.op("aten::_fused_adamw_", 710, 50, inputs=(("TensorList", [], []),))
    t.kernel("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<>", 720, 730, 10, adam)
    copy = t.op("aten::copy_", 920, 10, inputs=(("float", [4], [1]), ("float", [4], [1])))
    t.kernel("Memcpy HtoD (Pinned -> Device)", 922, 930, 20, copy, cat="gpu_memcpy")
    return t


def test_a_kernel_knows_its_operator_module_phase_and_step():
    found = [(k.op.name if k.op else None, k.module, k.phase, k.step) for k in one_step().read().kernels]
    assert found == [
        ("aten::copy_", "fc", "forward", 0),
        ("aten::addmm", "fc", "forward", 0),
        ("aten::_log_softmax", "", "forward", 0),
        ("aten::mm", "fc", "backward", 0),
        ("aten::add_", None, "backward", 0),
        ("aten::_fused_adamw_", None, "optimizer", 0),
        ("aten::copy_", None, "forward", 0),
    ]


def test_types_and_shapes_are_those_of_the_operators_inputs():
    product = one_step().read().kernels[1].op
    assert product == TracedOp(
        "aten::addmm",
        ((128,), (32, 64), (64, 128), ()),
        ((1,), (64, 1), (1, 64), ()),
        ("float16", "float16", "float16", "Scalar"),
        "float16",
    )


def test_an_operator_without_floating_inputs_takes_the_type_of_the_one_around_it():
    t = Written()
    t.marked(STEP, 0, 100)
    t.op("aten::convolution", 10, 50, inputs=((HALF, [1, 2, 3, 3], [18, 9, 3, 1]),))
    inner = t.op("aten::empty", 20, 5, inputs=(("ScalarList", [], []),))
    t.kernel("k", 21, 30, 1, inner)
    (kernel,) = t.read().kernels
    assert kernel.op is not None
    assert (kernel.op.name, kernel.op.dtype) == ("aten::empty", "float16")


def test_a_kernel_without_an_external_id_belongs_to_the_operator_around_its_launch():
    t = Written()
    t.marked(STEP, 0, 100)
    t.marked(f"{MODULE}a", 5, 50)
    t.op("aten::mm", 10, 30, inputs=((HALF, [2, 2], [2, 1]),) * 2)
    t.op("aten::relu", 45, 5, inputs=((HALF, [2, 2], [2, 1]),))
    t.kernel("first", 20, 60, 1, None)
    t.kernel("second", 52, 62, 1, None)
    t.kernel("third", 90, 70, 1, None)
    assert [(k.op.name if k.op else None, k.module) for k in t.read().kernels] == [
        ("aten::mm", "a"),
        (None, "a"),
        (None, None),
    ]


def test_a_backward_operator_goes_to_the_last_forward_operator_of_its_number():
    t = Written()
    t.marked(STEP, 0, 1000)
    t.marked(f"{MODULE}first", 10, 50)
    t.op("aten::empty", 20, 5, seq=3)  # sees number 3 and makes no node
    t.marked(f"{MODULE}second", 70, 50)
    t.op("aten::linear", 80, 30, seq=3)
    t.op("aten::addmm", 90, 10, seq=3)
    t.op("autograd::engine::evaluate_function: AddmmBackward0", 200, 50, BACKWARD, seq=3, fwd=1)
    mm = t.op("aten::mm", 210, 10, BACKWARD)
    t.kernel("k", 212, 220, 1, mm, BACKWARD)
    assert t.read().kernels[0].module == "second"


def test_what_checkpointing_computes_again_is_backward_work_of_its_module():
    t = Written()
    t.marked(STEP, 0, 1000)
    t.op("autograd::engine::evaluate_function: CheckpointBackward", 200, 300, BACKWARD, seq=3, fwd=1)
    t.marked(f"{MODULE}block", 210, 100, BACKWARD)
    mm = t.op("aten::mm", 220, 10, BACKWARD, seq=1)
    t.kernel("again", 222, 230, 1, mm, BACKWARD)
    t.op("autograd::engine::evaluate_function: MmBackward0", 350, 50, BACKWARD, seq=1, fwd=2)
    inner = t.op("aten::mm", 360, 10, BACKWARD)
    t.kernel("its backward", 362, 370, 1, inner, BACKWARD)
    assert [(k.module, k.phase) for k in t.read().kernels] == [("block", "backward")] * 2


def test_unscaling_gradients_is_the_optimizers_work():
    t = Written()
    t.marked(STEP, 0, 100)
    op = t.op("aten::_amp_foreach_non_finite_check_and_unscale_", 10, 10)
    t.kernel("k", 12, 15, 1, op)
    assert t.read().kernels[0].phase == "optimizer"


def test_kernels_launched_before_the_first_step_are_left_out():
    t = Written()
    t.marked(STEP, 100, 100)
    t.kernel("old", 50, 110, 5, None)
    t.kernel("new", 150, 160, 5, None)
    t.events.append({"ph": "X", "cat": "kernel", "name": "orphan", "pid": 0, "tid": 7, "ts": 120.0, "dur": 1.0})
    assert [k.name for k in t.read().kernels] == ["new"]


def test_steps_are_told_apart_by_their_launches_though_kernels_run_late():
    t = Written()
    t.marked(STEP, 100, 100)
    t.marked(STEP, 210, 100)
    t.kernel("a", 190, 290, 5, None)
    t.kernel("b", 220, 300, 5, None)
    trace = t.read()
    assert [(k.name, k.step) for k in trace.kernels] == [("a", 0), ("b", 1)]
    assert (trace.steps, trace.span_us) == (2, 210.0)


def test_the_hosts_waits_know_their_call_operator_module_and_step():
    t = Written()
    t.marked(STEP, 100, 500)
    t.marked(f"{MODULE}head", 110, 50)
    outer = t.op("aten::nonzero", 115, 40)
    inner = t.op("aten::copy_", 120, 30)
    t.waits("cudaStreamSynchronize", 125, 20.0, inner)
    t.op("autograd::engine::evaluate_function: MyBackward", 200, 50, BACKWARD, seq=9, fwd=1)
    t.op("aten::item", 210, 30, BACKWARD)
    t.waits("cudaStreamSynchronize", 215, 5.0, tid=BACKWARD)  # told by time alone
    t.waits("cudaDeviceSynchronize", 300, 7.0)
    t.waits("cudaEventSynchronize", 320, 1.0)
    t.waits("cudaMemcpy", 330, 3.0)
    t.waits("cudaStreamWaitEvent", 340, 3.0)  # the GPU waits in it, not the host
    t.waits("cudaMemcpyAsync", 345, 3.0)
    cpu = t.op("aten::to", 350, 40)
    t.kernel("Memcpy DtoH (Device -> Pageable)", 360, 365, 20, cpu, cat="gpu_memcpy", call="cudaMemcpyAsync")
    t.kernel("Memcpy DtoH (Device -> Pinned)", 370, 375, 20, cpu, cat="gpu_memcpy", call="cudaMemcpyAsync")
    t.waits("cudaDeviceSynchronize", 900, 50.0)  # the profiler's own, after the steps
    assert outer < inner
    assert t.read().waits == (
        TracedWait("cudaStreamSynchronize", 125.0, 20.0, 0, "aten::nonzero", "head"),
        TracedWait("cudaStreamSynchronize", 215.0, 5.0, 0, "aten::item", None),
        TracedWait("cudaDeviceSynchronize", 300.0, 7.0, 0, None, None),
        TracedWait("cudaEventSynchronize", 320.0, 1.0, 0, None, None),
        TracedWait("cudaMemcpy", 330.0, 3.0, 0, None, None),
        TracedWait("cudaMemcpyAsync", 360.0, 4.0, 0, "aten::to", None),
    )


def read_of_a_scaler(*between: str) -> str | None:
    """What an aten::item between unscaling and the optimizer's step is taken for; operators that come after it."""
    t = Written()
    t.marked(STEP, 0, 500)
    t.op("aten::_amp_foreach_non_finite_check_and_unscale_", 10, 10)
    item = t.op("aten::item", 30, 20)
    t.op("aten::_local_scalar_dense", 32, 15)
    t.waits("cudaStreamSynchronize", 35, 9.0, item)
    for i, name in enumerate(between):
        t.op(name, 60 + 10 * i, 5)
    t.marked("Optimizer.step#AdamW.step", 200, 100)
    (wait,) = t.read().waits
    return wait.op


def test_a_gradscalers_number_is_told_from_the_users_own_by_what_stands_beside_it():
    assert read_of_a_scaler() == SCALERS_READ
    assert read_of_a_scaler("aten::mul") == "aten::item"  # a logged loss, say, after unscale_()


def test_waits_of_one_call_operator_and_module_are_one_line_and_per_step():
    waits = [TracedWait("s", 0.0, 10.0, 0, "aten::item", None), TracedWait("s", 50.0, 30.0, 1, "aten::item", None),
             TracedWait("s", 90.0, 100.0, 1, "aten::item", "fc")]  # fmt: skip
    work = (kernel(0.0, 10.0), kernel(40.0, 40.0), kernel(88.0, 90.0))
    assert host_waits(Trace(work, 2, 100.0, tuple(waits))) == (
        HostWait("s", "aten::item", "fc", 0.5, 0.05, pytest.approx(0.006)),
        HostWait("s", "aten::item", None, 1.0, 0.02, pytest.approx(0.019)),
    )


def test_a_span_lasts_until_the_gpu_is_done_too():
    t = Written()
    t.marked(STEP, 100, 100)
    t.kernel("late", 190, 450, 50, None)
    assert t.read().span_us == 400


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


def kernel(start: float, duration: float, **more: Any) -> TracedKernel:
    return TracedKernel(**{"name": "k", "start_us": start, "duration_us": duration, "step": 0, "op": None,
                           "module": None, "phase": "other", **more})  # fmt: skip


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


# --- a real profile, on the CPU


def job() -> Job:
    def losses(model, batch):
        yield "loss", model(batch).square().mean()

    return Job(
        "tiny",
        "tiny.py",
        lambda: torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)),
        lambda: [torch.randn(5, 8) for _ in range(2)],
        losses,
        lambda model: {"loss": torch.optim.AdamW(model.parameters())},
    )


def with_kernels(document: dict[str, Any]) -> dict[str, Any]:
    """A CPU trace with a launch and a kernel for each operator that torch would run on the GPU."""
    grafted = Written()
    for event in document["traceEvents"]:
        if event.get("cat") == "cpu_op" and event["name"] in ("aten::addmm", "aten::mm", "aten::clamp_min"):
            at = event["ts"] + event["dur"] / 2
            grafted.kernel(event["name"], at, at + 1, 2.0, event["args"]["External id"], event["tid"])
    return {**document, "traceEvents": document["traceEvents"] + grafted.events[2:]}


def test_torchs_own_trace_gives_every_operator_its_module(monkeypatch):
    monkeypatch.setattr("mpdiag.measure.trace.exported", lambda profiler: with_kernels(exported(profiler)))
    each = job()
    with steady_run(each, each.start(0, 2), FP32_IEEE, torch.device("cpu"), 1) as run:
        trace = traced(run, steps=2)
    assert trace.steps == 2
    for step in range(2):
        found = [(k.name, k.module, k.phase) for k in trace.kernels if k.step == step]
        assert sorted(found) == sorted(
            [
                ("aten::addmm", "0", "forward"),
                ("aten::clamp_min", "1", "forward"),
                ("aten::addmm", "2", "forward"),
                ("aten::mm", "2", "backward"),
                ("aten::mm", "2", "backward"),
                ("aten::mm", "0", "backward"),
            ]
        )
    first = next(k for k in trace.kernels if k.name == "aten::addmm")
    assert first.op is not None
    assert (first.op.dims[:3], first.op.dtype) == (((16,), (5, 8), (8, 16)), "float32")


def test_the_marks_are_gone_afterwards_also_when_a_forward_raises():
    before = hook_counts()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError), marked_modules({id(m): n for n, m in model.named_modules()}):
        model(torch.zeros(3, 5))
    assert hook_counts() == before


def hook_counts() -> tuple[int, int]:
    room = torch.nn.modules.module
    return len(room._global_forward_pre_hooks), len(room._global_forward_hooks)


def test_on_a_cpu_everything_is_absent_with_its_reason():
    each = job()
    with steady_run(each, each.start(0, 2), Precision("TF32", tf32=True), torch.device("cpu"), 1) as run:
        found = trace_arm(run)
    reason = "needs a CUDA GPU"
    assert found == ArmKernels("TF32", "TF32", None, None, (), None, None, None, reason, reason, reason)


def test_throughput_is_flops_over_the_untraced_step_or_says_what_is_missing():
    flops = Flops(10**12, 2 * 10**12, recomputed=10**12)
    ceilings = Ceilings({"FP16": 600.0}, None, 8192, 1.0, reasons={"TF32": "not there"})
    assert throughput(flops, 10.0, ceilings, "FP16") == pytest.approx((300.0, 0.5, None))
    assert throughput(flops, 10.0, ceilings, "TF32") == (pytest.approx(300.0), None, "no ceiling for TF32: not there")
    assert throughput(flops, None, ceilings, "FP16") == (None, None, "the step was not timed")
    assert throughput(None, 10.0, None, "FP16") == (None, None, "FLOPs were not counted")
    differ = "the batches differ in FLOPs: the median step is not one of their mean"
    assert throughput(replace(flops, by_batch=(1, 7)), 10.0, ceilings, "FP16") == (None, None, differ)
    assert throughput(replace(flops, by_batch=(4, 4)), 10.0, ceilings, "FP16")[0] == pytest.approx(300.0)
    assert replace(flops, recomputed=0).model == flops.model == 3 * 10**12
    assert flops.executed == 4 * 10**12


def lengths_job(*lengths: int) -> Job:
    """Batches of so many rows."""
    return replace(job(), train_batches=lambda: [torch.randn(rows, 8) for rows in lengths])


@pytest.mark.parametrize(
    ("lengths", "flops", "steps"),
    [
        ((5, 5, 5, 5), None, 3),
        ((5, 2, 9, 4), None, 4),
        ((5, 2), None, 4),
        ((5, 2, 9, 4), Flops(1, 2, 0, by_batch=(3, 3)), 3),
        ((5, 5, 5, 5), Flops(1, 2, 0, by_batch=(3, 6, 3, 3)), 4),  # packed, say: shapes do not tell
    ],
)
def test_where_batches_differ_each_is_traced_as_often_as_any_other(monkeypatch, lengths, flops, steps):
    each, asked = lengths_job(*lengths), []
    monkeypatch.setattr(trace_room, "traced", lambda run, count: asked.append(count) or Trace((), 1, 1.0))
    with steady_run(each, each.start(0, len(lengths)), FP32_IEEE, torch.device("cpu"), 1) as run:
        run.session.device = torch.device("cuda")  # what is traced is planted
        trace_arm(run, flops=flops)
    assert asked == [steps]


def test_on_a_gpu_that_is_shared_an_arm_has_its_names_and_no_rate_and_is_marked(monkeypatch):
    each, timed = job(), []
    trace = one_step().read()
    odd = [
        replace(k, op=replace(k.op, dims=((128, 33), (33, 64)))) if k.name[:7] == "cutlass" else k
        for k in trace.kernels
    ]
    monkeypatch.setattr(trace_room, "traced", lambda run, count: replace(trace, kernels=tuple(odd)))
    monkeypatch.setattr(trace_room, "time_products", lambda products, device: timed.append(products) or {})
    ceilings = Ceilings({"FP16": 600.0, "FP32": 50.0}, None, 8192, 1.0)
    flops = Flops(10**9, 2 * 10**9, 0, {"fc": (10**9, 2 * 10**9)})
    why = "the GPU was busy with other work before this run"

    def found(shared: str | None) -> ArmKernels:
        with steady_run(each, each.start(0, 2), FP32_IEEE, torch.device("cpu"), 1) as run:
            run.session.device = torch.device("cuda")
            run.session.precision = Precision("FP16", autocast=torch.float16)
            run.in_force_again = lambda: nullcontext(run.step)
            return trace_arm(run, step_ms=1.0, flops=flops, ceilings=ceilings, shared=shared)

    alone = found(None)
    assert alone.shared is None
    assert alone.tflops_per_s == pytest.approx(3.0)
    assert timed
    assert any(layer.tflops_per_s for layer in alone.layers)
    assert alone.findings[0].code == "gpu-waits"
    timed.clear()
    shared = found(why)
    assert (shared.shared, shared.throughput_reason, shared.tflops_per_s, shared.of_ceiling) == (why, why, None, None)
    assert timed == []
    assert [layer.tflops_per_s for layer in shared.layers] == [None] * len(shared.layers)
    assert shared.time.by_class == alone.time.by_class
    assert [layer.tensor_cores for layer in shared.layers] == [layer.tensor_cores for layer in alone.layers]
    assert "gpu-waits" not in {finding.code for finding in shared.findings}
    assert ladder_of(shared).levels[4].text == why


# --- bodies alone


def test_a_body_that_fails_while_it_is_timed_has_no_time_and_leaves_the_others_theirs(monkeypatch):
    def grafted(profiler):
        """Each range a kernel, the first of 10 us, the next of 20 us and so on."""
        document, written = exported(profiler), Written()
        starts = sorted(e["ts"] for e in document["traceEvents"] if e.get("name") == STEP)
        for i, start in enumerate(starts):
            written.kernel("k", start + 0.01, start + 1, 10.0 * (i + 1), None)
        return {**document, "traceEvents": document["traceEvents"] + written.events[2:]}

    def body(fails_at: int | None):
        calls = iter(range(100))

        def call():
            if next(calls) == fails_at:
                raise RuntimeError("CUDA error: an illegal instruction was encountered")

        return lambda: call

    monkeypatch.setattr("mpdiag.measure.profiled.exported", grafted)
    found = kernel_ms([body(None), body(0), body(3), body(None)], calls=2)
    assert found == [pytest.approx(0.005), None, None, pytest.approx(0.015)]


def test_a_record_of_the_profiler_that_cannot_be_read_leaves_every_body_without_a_time(monkeypatch):
    def broken(profiler):
        return json.loads('{"traceEvents": [')

    monkeypatch.setattr("mpdiag.measure.profiled.exported", broken)
    assert kernel_ms([lambda: lambda: None] * 2, calls=2) == [None, None]


def test_a_trace_is_read_as_utf_8_whatever_the_locale_says(monkeypatch):
    class Profiler:
        def export_chrome_trace(self, path):
            Path(path).write_bytes('{"name": "Schicht/\u00e4"}'.encode())

    read = Path.read_text

    def in_ascii(path, encoding=None, errors=None):
        return read(path, encoding=encoding or "ascii", errors=errors)

    monkeypatch.setattr(Path, "read_text", in_ascii)
    assert exported(Profiler()) == {"name": "Schicht/\u00e4"}
