"""Where the kernel time of a traced step went: by class, by type, by phase. No torch here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from mpdiag.costs.kernel_names import Purpose, TensorCores, purpose, tensor_cores
from mpdiag.costs.kernels import HostWait, KernelTime, NamedKernel
from mpdiag.measure.intervals import lost_us, merged, union_us
from mpdiag.measure.trace_events import Trace, TracedKernel

TOP = 15  # kernels listed by name; most steps have nine tenths of their time in fewer
FLOATS = ("float16", "bfloat16", "float32", "float64")


def kernel_time(trace: Trace, step_ms: float | None) -> KernelTime | None:
    """The shares of a trace; None where it holds no kernel. step_ms: of the untraced step, None if not measured."""
    steps = trace.steps
    kernels = [k for k in trace.kernels if not k.copy]
    total = sum(k.duration_us for k in kernels)
    if not steps or not total:
        return None

    def share(chosen: Iterable[TracedKernel]) -> float:
        return sum(k.duration_us for k in chosen) / total

    classes = {each: share(k for k in kernels if tensor_cores(k.name) == each) for each in TensorCores}
    on_tensor_cores = [k for k in kernels if tensor_cores(k.name) == TensorCores.YES]
    busy = sum(union_us([k for k in trace.kernels if k.step == i]) for i in range(steps)) / steps / 1000
    wall = step_ms if step_ms is not None else trace.span_us / steps / 1000
    named = named_kernels(kernels, steps)
    return KernelTime(
        steps=steps,
        kernels=len(kernels) / steps,
        total_ms=total / steps / 1000,
        by_class={str(each): part for each, part in classes.items()},
        by_dtype=_by_dtype(kernels, total),
        tensor_by_dtype=_by_dtype(on_tensor_cores, total),
        matrix_share=share(k for k in kernels if purpose(k.name) == Purpose.PRODUCT),
        cast_share=share(k for k in kernels if is_cast(k)),
        transpose_share=share(k for k in kernels if purpose(k.name) == Purpose.TRANSPOSE),
        optimizer_share=share(k for k in kernels if k.phase == "optimizer"),
        memcpy_ms=sum(k.duration_us for k in trace.kernels if k.copy) / steps / 1000,
        median_kernel_us=median(k.duration_us for k in kernels),
        busy_ms=busy,
        step_ms=wall,
        step_traced=step_ms is None,
        busy_share=busy / wall,
        top=tuple(named[:TOP]),
        unknown=tuple(k for k in named if k.tensor_cores == TensorCores.UNKNOWN)[:TOP],
        waits=host_waits(trace),
    )


def host_waits(trace: Trace) -> tuple[HostWait, ...]:
    """The host's waits by call, operator and module, most time first; per step."""
    groups: defaultdict[tuple[str, str | None, str | None], list[tuple[float, float]]] = defaultdict(list)
    for wait, lost in zip(trace.waits, lost_us(trace.waits, merged(trace.kernels)), strict=True):
        groups[wait.call, wait.op, wait.module].append((wait.duration_us, lost))
    found = []
    for key, times in groups.items():
        waited, lost = (sum(each) / trace.steps / 1000 for each in zip(*times, strict=True))
        found.append(HostWait(*key, len(times) / trace.steps, waited, lost))
    return tuple(sorted(found, key=lambda wait: -wait.time_ms))


def named_kernels(kernels: Sequence[TracedKernel], steps: int) -> list[NamedKernel]:
    """The kernels by name, operator and type, most time first; per step."""
    groups: defaultdict[tuple[str, str | None, str | None], list[float]] = defaultdict(list)
    for k in kernels:
        groups[k.name, k.op.name if k.op else None, k.op.dtype if k.op else None].append(k.duration_us)
    named = [
        NamedKernel(name, op, dtype, str(tensor_cores(name)), len(times) / steps, sum(times) / steps / 1000)
        for (name, op, dtype), times in groups.items()
    ]
    return sorted(named, key=lambda k: (-k.time_ms, k.name))


def is_cast(kernel: TracedKernel) -> bool:
    """Whether it copies floating-point numbers from one type to another."""
    op = kernel.op
    if op is None or op.name != "aten::copy_" or len(op.dtypes) < 2:
        return False
    to, source = op.dtypes[:2]
    return to in FLOATS and source in FLOATS and to != source


def _by_dtype(kernels: Iterable[TracedKernel], total: float) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for k in kernels:
        found[(k.op.dtype if k.op else None) or "not known"] += k.duration_us / total
    return dict(sorted(found.items(), key=lambda item: -item[1]))
