"""An arm that is traced: each operator has its module, each batch its turn, and a rate is given only where it holds."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from mpdiag.costs.kernels import ArmKernels, Flops
from mpdiag.costs.ladder import ladder_of
from mpdiag.costs.tensor_cores import Ceilings
from mpdiag.measure import trace as trace_room
from mpdiag.measure.profiled import exported
from mpdiag.measure.steady import steady_run
from mpdiag.measure.trace import marked_modules, throughput, trace_arm, traced
from mpdiag.measure.trace_events import Trace
from mpdiag.target.job import Job
from mpdiag.training.precision import FP32_IEEE, Precision
from trace_samples import Written, job, one_step

# --- a real profile, on the CPU


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
