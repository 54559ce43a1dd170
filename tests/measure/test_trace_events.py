"""A trace of torch.profiler is read as kernels and waits that know their operator, module, phase and step."""

from __future__ import annotations

from mpdiag.costs.kernels import SCALERS_READ
from mpdiag.measure.trace_events import MODULE, STEP, TracedOp, TracedWait
from trace_samples import BACKWARD, HALF, Written, one_step


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


def test_a_span_lasts_until_the_gpu_is_done_too():
    t = Written()
    t.marked(STEP, 100, 100)
    t.kernel("late", 190, 450, 50, None)
    assert t.read().span_us == 400
