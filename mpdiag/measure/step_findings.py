"""What holds for a whole traced step: launch bound, casts, transposes, optimizer, or bound elsewhere. No torch."""

from __future__ import annotations

from mpdiag.costs.kernels import KernelTime, WhyNot
from mpdiag.costs.tensor_cores import FP16, FP32, Ceilings
from mpdiag.measure.why_not import BOUND, FORMULA, LAYOUT, WORTH

LAUNCH_BOUND = "launch-bound"
SHORT_KERNEL_US = 10.0  # a launch takes the host 5 to 10 us; shorter kernels end before the next is there
BUSY = 0.7  # of the step: below it the GPU waits for the host
CASTS = 0.05  # of the kernel time: weights and activations cast once come to less
OPTIMIZER = 0.2  # of the kernel time: mixed precision does not touch it
FEW_PRODUCTS = 0.3  # of the kernel time: the rest bounds what mixed precision can give


def findings_of(time: KernelTime, arithmetic: str, ceilings: Ceilings | None) -> tuple[WhyNot, ...]:
    """The findings of one arm: first that the GPU waits, since no other one shortens such a step; then by gain."""
    found = [
        _launch_bound(time),
        _casts(time),
        _transposes(time, arithmetic),
        _optimizer(time),
        _elsewhere(time, arithmetic, ceilings),
    ]
    return tuple(
        sorted((f for f in found if f is not None), key=lambda f: (f.code != LAUNCH_BOUND, -(f.gain_ms or 0.0)))
    )


def _launch_bound(time: KernelTime) -> WhyNot | None:
    if time.median_kernel_us >= SHORT_KERNEL_US or time.busy_share >= BUSY:
        return None
    return WhyNot(
        LAUNCH_BOUND,
        f"the GPU is busy {time.busy_share:.0%} of the step, and half its {time.kernels:.0f} kernels are shorter than "
        f"{time.median_kernel_us:.1f} us: it waits for the host",
        "a larger batch, torch.compile or CUDA graphs, a fused optimizer",
        None,
        f"not measured: at most the {max(0.0, time.step_ms - time.busy_ms):.3g} ms of a step in which the GPU waits"
        + (", a step that the profiler made longer" if time.step_traced else ""),
    )


def _casts(time: KernelTime) -> WhyNot | None:
    if time.cast_share < CASTS:
        return None
    return WhyNot(
        "casts",
        f"casts between types take {time.cast_share:.0%} of the kernel time",
        "one autocast region around the whole forward, its weight cache on, no .float() and .half() in turn",
        time.cast_share * time.total_ms,
        BOUND,
    )


def _transposes(time: KernelTime, arithmetic: str) -> WhyNot | None:
    if time.transpose_share < WORTH or arithmetic == FP32:
        return None
    return WhyNot(
        LAYOUT,
        f"layout changes around convolutions take {time.transpose_share:.0%} of the kernel time",
        "model.to(memory_format=torch.channels_last), and the inputs too; then measure again",
        time.transpose_share * time.total_ms,
        BOUND,
    )


def _optimizer(time: KernelTime) -> WhyNot | None:
    if time.optimizer_share < OPTIMIZER:
        return None
    return WhyNot(
        "optimizer",
        f"the optimizer takes {time.optimizer_share:.0%} of the kernel time, in FP32 with any precision",
        "the fused optimizer: AdamW(..., fused=True)",
        None,
        "not measured: the fused optimizer was not run",
    )


def _elsewhere(time: KernelTime, arithmetic: str, ceilings: Ceilings | None) -> WhyNot | None:
    """In an FP32 arm: what 16-bit products can give at most, if products take little of the time."""
    if arithmetic != FP32 or time.matrix_share >= FEW_PRODUCTS:
        return None
    fast, slow = (ceilings.tflops.get(a) if ceilings else None for a in (FP16, FP32))
    share = time.matrix_share
    gain = None if not fast or not slow else share * time.total_ms * (1 - slow / fast)
    return WhyNot(
        "bound-elsewhere",
        f"products take {share:.0%} of the kernel time: however fast they get, the kernels take at least "
        f"{1 - share:.0%} of it (Amdahl)",
        "look at what the rest does first",
        gain,
        FORMULA if gain is not None else "not measured: no ceilings on this GPU",
    )
