"""Chrome traces written event by event in torch's form, and a small job to trace."""

from __future__ import annotations

import json
from typing import Any

import torch

from mpdiag.measure.trace_events import MODULE, STEP, Trace, TracedKernel, read_trace
from mpdiag.target.job import Job

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


def kernel(start: float, duration: float, **more: Any) -> TracedKernel:
    return TracedKernel(**{"name": "k", "start_us": start, "duration_us": duration, "step": 0, "op": None,
                           "module": None, "phase": "other", **more})  # fmt: skip


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
