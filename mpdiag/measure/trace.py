"""Three steady steps of an arm under torch.profiler, with every module's forward marked; all taken off afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import module as torch_module
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from mpdiag.costs.gpu import NEEDS_GPU
from mpdiag.costs.kernels import ArmKernels, Flops
from mpdiag.costs.tensor_cores import Ceilings
from mpdiag.measure.flops import shapes_of
from mpdiag.measure.kernel_shares import kernel_time
from mpdiag.measure.layers import arithmetic_of, facts_of, layers_of
from mpdiag.measure.padding import time_products
from mpdiag.measure.products import Product
from mpdiag.measure.profiled import exported
from mpdiag.measure.steady import SteadyRun
from mpdiag.measure.step_findings import findings_of
from mpdiag.measure.trace_events import MODULE, STEP, Trace, read_trace

STEPS = 3  # enough to see what varies; a trace of a large model is tens of megabytes a step
COMPILED = "the arm runs through torch.compile: one kernel does the work of several modules"
NO_KERNELS = (
    "the profiler saw no kernel; another tool may hold CUPTI (Nsight, DCGM profiling, a debugger), "
    "or the driver keeps profiling for administrators"
)


def trace_arm(
    run: SteadyRun,
    steps: int | None = None,
    step_ms: float | None = None,
    flops: Flops | None = None,
    ceilings: Ceilings | None = None,
    shared: str | None = None,
) -> ArmKernels:
    """Trace `steps` steps of a warm arm and say where its kernel time went, for the step and for each layer.

    steps: three, or one of every batch where these differ, whose mean the FLOPs are of. step_ms: the untraced step, for
    what is held against a step. flops, ceilings: for rates; without them the layers have none. Odd matrix products are
    timed again, alone and padded, on the arm's device. shared: why no time is this run's alone; then there is no rate,
    nothing is timed again, and the record says so.
    Raises MpdiagError with what the user's code raised.
    """
    session = run.session
    arm, arithmetic = session.precision.name, arithmetic_of(session.precision)
    steps = _steps_of(run, flops) if steps is None else steps
    if shared is not None:
        flops = ceilings = None
    if session.device.type != "cuda":
        return untraced(arm, arithmetic, NEEDS_GPU)
    trace = traced(run, steps)
    time = kernel_time(trace, step_ms)
    if time is None:
        return untraced(arm, arithmetic, NO_KERNELS)
    layers = None
    if not session.precision.compiled:

        def timer(products: Sequence[Product]) -> dict[Product, float]:
            if shared is not None:
                return {}
            with run.in_force_again():  # the arm's own TF32 switches
                return time_products(products, session.device)

        layers = layers_of(trace, facts_of(session.model), arithmetic, flops, ceilings, timer)
    rate, of_ceiling, why = throughput(flops, step_ms, ceilings, arithmetic)
    return ArmKernels(
        arm,
        arithmetic,
        time,
        layers,
        findings_of(time, arithmetic, ceilings, shared),
        rate,
        of_ceiling,
        layers_reason=None if layers is not None else COMPILED,
        throughput_reason=shared or why,
        shared=shared,
    )


def _steps_of(run: SteadyRun, flops: Flops | None) -> int:
    """How many steps to trace: where batches differ, all of them and each as often as any other."""
    batches = len(run.batches)
    differ = flops.varied if flops is not None else len({shapes_of(batch) for batch in run.batches}) > 1
    return -(-STEPS // batches) * batches if differ else STEPS


def untraced(arm: str, arithmetic: str, reason: str) -> ArmKernels:
    """An arm of which nothing is known, for one reason."""
    return ArmKernels(arm, arithmetic, None, None, reason=reason, layers_reason=reason, throughput_reason=reason)


def throughput(
    flops: Flops | None, step_ms: float | None, ceilings: Ceilings | None, arithmetic: str
) -> tuple[float | None, float | None, str | None]:
    """(TFLOP/s of the model, its share of the ceiling measured in that arithmetic, why one of them is missing)."""
    if flops is None or step_ms is None:
        return None, None, "FLOPs were not counted" if flops is None else "the step was not timed"
    if flops.varied:
        return None, None, "the batches differ in FLOPs: the median step is not one of their mean"
    rate = flops.model / (step_ms / 1000) / 1e12
    ceiling = ceilings.tflops.get(arithmetic) if ceilings else None
    if ceiling is None:
        why = ceilings.reasons.get(arithmetic) if ceilings else None
        return rate, None, f"no ceiling for {arithmetic}: {why or 'not measured'}"
    return rate, rate / ceiling, None


def traced(run: SteadyRun, steps: int = STEPS) -> Trace:
    """The kernels of `steps` steps, after one that is stepped under the profiler and not kept."""
    session = run.session
    activities = [ProfilerActivity.CPU]
    if session.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    names = {} if session.precision.compiled else {id(m): name for name, m in session.model.named_modules()}
    wanted = schedule(wait=0, warmup=1, active=steps, repeat=1)
    with (
        warnings.catch_warnings(),
        run.in_force_again() as step,
        marked_modules(names),
        profile(activities=activities, record_shapes=True, schedule=wanted) as profiler,
    ):
        # there is one cycle, whose events are all that is wanted
        warnings.filterwarnings("ignore", message=".*Profiler clears events")
        for _ in range(steps + 1):
            with record_function(STEP):
                step()
            profiler.step()
    return read_trace(exported(profiler))


@contextmanager
def marked_modules(names: dict[int, str]) -> Iterator[None]:
    """Within it, each named module's forward is a range of the profiler. names: by id() of the module."""
    if not names:
        yield
        return
    open_ranges: list[tuple[int, record_function]] = []

    def enter(module: torch.nn.Module, _: Any) -> None:
        if id(module) in names:
            mark = record_function(f"{MODULE}{names[id(module)]}")
            mark.__enter__()
            open_ranges.append((id(module), mark))

    def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
        if open_ranges and open_ranges[-1][0] == id(module):
            open_ranges.pop()[1].__exit__(None, None, None)

    hooks = [
        torch_module.register_module_forward_pre_hook(enter),
        torch_module.register_module_forward_hook(leave, always_call=True),  # also where the forward raises
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        while open_ranges:
            open_ranges.pop()[1].__exit__(None, None, None)
