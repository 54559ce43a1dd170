"""What holds for a whole traced step: a GPU that waits, a host that waits, casts, the optimizer and more. No torch."""

from __future__ import annotations

from mpdiag.costs.kernels import GPU_WAITS, LAUNCH_BOUND, SCALERS_READ, WAITING, HostWait, KernelTime, WhyNot
from mpdiag.costs.tensor_cores import FP16, FP32, Ceilings
from mpdiag.measure.why_not import BOUND, FORMULA, LAYOUT, WORTH

SHORT_KERNEL_US = 10.0  # a launch takes the host 5 to 10 us; shorter kernels end before the next is there
BUSY = 0.7  # of the step: an idle third is no longer the gaps between kernels, which come to a few percent
NAMED_WAITS = 3  # the longest ones in one sentence
LITTLE = 0.01  # of the step: waits that take less, or cost less, are not worth a change of the loop
MUCH = 0.05  # of the step: waits that take as much are worth a line however busy the GPU is
HOST_WAITS = "host-waits"
CASTS = 0.05  # of the kernel time: weights and activations cast once come to less
OPTIMIZER = 0.2  # of the kernel time: mixed precision does not touch it
FEW_PRODUCTS = 0.3  # of the kernel time: the rest bounds what mixed precision can give


def findings_of(
    time: KernelTime, arithmetic: str, ceilings: Ceilings | None, shared: str | None = None
) -> tuple[WhyNot, ...]:
    """The findings of one arm: first that the GPU waits, since no other one shortens such a step; then by gain.

    shared: why times are not this run's alone; then nothing is said of waiting, which may be for others' work.
    """
    found = [
        None if shared else _gpu_waits(time),
        None if shared else _host_waits(time),
        _casts(time),
        _transposes(time, arithmetic),
        _optimizer(time),
        _elsewhere(time, arithmetic, ceilings),
    ]
    order = (*WAITING, HOST_WAITS)
    return tuple(sorted((f for f in found if f is not None), key=lambda f: (f.code not in order, -(f.gain_ms or 0.0))))


def _gpu_waits(time: KernelTime) -> WhyNot | None:
    if time.busy_share >= BUSY:
        return None
    idle = max(0.0, time.step_ms - time.busy_ms)
    short = time.median_kernel_us < SHORT_KERNEL_US
    text = (
        f"the GPU waits {idle:.3g} of {time.step_ms:.3g} ms a step for the host: it is busy {time.busy_share:.0%} of it"
    )
    if short:
        text += f", and half its {time.kernels:.0f} kernels are shorter than {time.median_kernel_us:.1f} us"
    return WhyNot(
        LAUNCH_BOUND if short else GPU_WAITS,
        text,
        "a larger batch, torch.compile or CUDA graphs, a fused optimizer, fewer waits of the host for the GPU",
        None,
        f"not measured: at most the {idle:.3g} ms of a step in which the GPU waits"
        + (", a step that the profiler made longer" if time.step_traced else ""),
    )


def _host_waits(time: KernelTime) -> WhyNot | None:
    """Waits of the host for the GPU that take a part of the step: long ones, short ones of something else than a
    GradScaler or where the GPU waits too; none of a GradScaler's alone during and after which the GPU has work.
    """
    own = [wait for wait in time.waits if wait.op != SCALERS_READ]
    idle = time.busy_share < BUSY
    calls, total = sum(wait.calls for wait in time.waits), sum(wait.time_ms for wait in time.waits)
    lost = sum(wait.lost_ms or 0.0 for wait in time.waits) if all(w.lost_ms is not None for w in time.waits) else None
    if total < LITTLE * time.step_ms or not (idle or own or total >= MUCH * time.step_ms):
        return None
    if not own and lost is not None and lost < LITTLE * time.step_ms:
        return None
    remedy = (
        "keep the steps free of .item(), .cpu(), printed tensors and torch.cuda.synchronize(): read every 100th step"
    )
    if not own:
        remedy = "a fused optimizer: AdamW(..., fused=True) takes the GradScaler's number on the GPU"
    return WhyNot(
        HOST_WAITS,
        f"the host waits for the GPU in {_calls(calls)} a step, {total:.2g} ms of a traced step: "
        + "; ".join(map(_wait_in_words, time.waits[:NAMED_WAITS]))
        + ("; and more" if len(time.waits) > NAMED_WAITS else ""),
        remedy,
        None,
        _why_no_gain(time, lost),
    )


def _why_no_gain(time: KernelTime, lost_ms: float | None) -> str:
    """What waits cost at most: not their time, in which the GPU may work, but that in which it has nothing to do."""
    if lost_ms is None:
        return "not measured: while the host waits it queues nothing"
    if lost_ms < LITTLE * time.step_ms:
        return "little to gain: the GPU has work during these waits and right after them"
    return (
        f"not measured: at most {lost_ms:.2g} ms of a traced step, in which the GPU has nothing to do during these "
        "waits or right after them"
    )


def _calls(calls: float) -> str:
    shown = f"{calls:.3g}"
    return f"{shown} call{'' if shown == '1' else 's'}"


def _wait_in_words(wait: HostWait) -> str:
    where = f"in {wait.op}" if wait.op else "in no operator (torch.cuda.synchronize(), say)"
    if wait.module is not None:
        where += f" of {wait.module or 'the model'}"
    return f"{wait.call} {where}, {wait.time_ms:.2g} ms"


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
