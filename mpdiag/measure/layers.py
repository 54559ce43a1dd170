"""Layer by layer: time, type, tensor cores or not, and the rate; from a trace and the counted FLOPs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from mpdiag.costs.kernel_names import Purpose, TensorCores, purpose, tensor_cores
from mpdiag.costs.kernels import Flops, LayerUse, WhyNot
from mpdiag.costs.tensor_cores import BF16, FP16, FP32, TF32, Ceilings
from mpdiag.measure.intervals import union_us
from mpdiag.measure.products import Product
from mpdiag.measure.trace_events import Trace, TracedKernel
from mpdiag.measure.why_not import ModuleFacts, products_to_time, reasons_of
from mpdiag.training.islands import is_island
from mpdiag.training.precision import Precision

OUTSIDE = "(outside the model)"  # the loss, and what adds gradients up
LEAST_SHARE = 0.01  # of the kernel time: a module without a product is listed from here on
WHOLE = 0.95  # of a layer's product time: the rest is remainders, such as one split-K part
BEYOND = 1.15  # times the CUDA cores' measured ceiling is out of their reach: clocks and the ceiling's own error
HALF_PER_SINGLE = 4  # FP16 runs on CUDA cores at most four times as fast as FP32 (GA100; others two times or equal)

_CEILING_OF = {"float16": FP16, "bfloat16": BF16}
Timer = Callable[[Sequence[Product]], Mapping[Product, float]]


def arithmetic_of(precision: Precision) -> str:
    """The arithmetic of an arm's products: FP16, BF16, TF32, or FP32, which is whatever the user's settings say."""
    if precision.autocast is not None:
        return FP16 if precision.autocast == torch.float16 else BF16
    return TF32 if precision.tf32 else FP32


def facts_of(model: torch.nn.Module) -> dict[str, ModuleFacts]:
    """What the reasons need to know of each module, by its qualified name; "" is the model."""
    return {
        name: ModuleFacts(
            type(module).__name__,
            int(getattr(module, "groups", 1)) if _is_convolution(module) else 1,
            int(getattr(module, "in_channels", 0)) if _is_convolution(module) else 0,
            is_island(module),
        )
        for name, module in model.named_modules()
    }


def _is_convolution(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.modules.conv._ConvNd)


def layers_of(
    trace: Trace,
    facts: Mapping[str, ModuleFacts],
    arithmetic: str,
    flops: Flops | None,
    ceilings: Ceilings | None,
    timer: Timer,
) -> tuple[LayerUse, ...]:
    """Modules with products of their own or a hundredth of the kernel time, most time first; with what is in none.

    Times, shares, rates and gains are by the clock: of kernels that overlap (cuDNN's recurrent layers take several
    streams) only their union is a part of the step.
    timer: kernel time in ms of single products; asked once, for all layers together.
    """
    kernels = [k for k in trace.kernels if not k.copy]
    total, by_clock = sum(k.duration_us for k in kernels), union_us(kernels)
    own: defaultdict[str, list[TracedKernel]] = defaultdict(list)
    for k in kernels:
        if k.phase in ("forward", "backward"):
            own[OUTSIDE if k.module is None else k.module].append(k)
    listed = {
        name: found
        for name, found in own.items()
        if any(purpose(k.name) == Purpose.PRODUCT for k in found)
        or sum(k.duration_us for k in found) >= LEAST_SHARE * total
    }
    steps = trace.steps
    wanted = [p for found in listed.values() for p in products_to_time(found, arithmetic, total)]
    timed = timer(wanted) if wanted else {}
    layers = []
    for name, found in listed.items():
        fact = facts.get(name, ModuleFacts("", 1, 0, False))
        reasons = _by_clock(reasons_of(found, fact, arithmetic, total, steps, timed), found)
        counted = sum(flops.by_module[name]) if flops and name in flops.by_module else None
        layer = _layer(name, fact, found, by_clock, steps, counted, arithmetic, ceilings)
        layers.append(replace(layer, why_not=reasons))
    return tuple(sorted(layers, key=lambda each: -each.time_share))


def _by_clock(reasons: Sequence[WhyNot], kernels: Sequence[TracedKernel]) -> tuple[WhyNot, ...]:
    """The reasons with gains of a layer's time by the clock, which is less than its kernels' where these overlap."""
    part = union_us(kernels) / (sum(k.duration_us for k in kernels) or 1.0)
    return tuple(why if why.gain_ms is None else replace(why, gain_ms=why.gain_ms * part) for why in reasons)


def _layer(
    name: str,
    fact: ModuleFacts,
    kernels: Sequence[TracedKernel],
    by_clock_us: float,
    steps: int,
    flops: int | None,
    arithmetic: str,
    ceilings: Ceilings | None,
) -> LayerUse:
    products = [k for k in kernels if purpose(k.name) == Purpose.PRODUCT]
    dtype = _most_time(products or kernels)
    product_s = union_us(products) / steps / 1e6
    rate = flops / product_s / 1e12 if flops and product_s else None
    by_type = {"float32": TF32 if arithmetic == TF32 else FP32, **_CEILING_OF}
    ceiling, burst = ceilings.of_layers(by_type.get(dtype or "", "")) if ceilings else (None, False)
    return LayerUse(
        name=name,
        module_type=fact.type,
        forward_ms=union_us(k for k in kernels if k.phase == "forward") / steps / 1000,
        backward_ms=union_us(k for k in kernels if k.phase == "backward") / steps / 1000,
        time_share=union_us(kernels) / by_clock_us,
        dtype=dtype,
        tensor_cores=verdict(products),
        flops=flops,
        tflops_per_s=rate,
        of_ceiling=rate / ceiling if rate is not None and ceiling else None,
        of_burst=burst and rate is not None,
        impossible_without=None if _convolves(products) else beyond_cuda_cores(rate, dtype, ceilings),
    )


def verdict(products: Sequence[TracedKernel]) -> str:
    """ "yes", "no", "mixed" or "unknown" by the time of a layer's products; "no" where it has none."""
    time: defaultdict[TensorCores, float] = defaultdict(float)
    for k in products:
        time[tensor_cores(k.name)] += k.duration_us
    total = sum(time.values())
    if not total:
        return "no"
    for answer in (TensorCores.YES, TensorCores.NO):
        if time[answer] >= WHOLE * total:
            return str(answer)
    told = time[TensorCores.YES] + time[TensorCores.NO]
    return "mixed" if told >= total / 2 and time[TensorCores.YES] else "unknown" if told < WHOLE * total else "no"


def beyond_cuda_cores(rate: float | None, dtype: str | None, ceilings: Ceilings | None) -> bool | None:
    """Whether a rate in TFLOP/s is out of the CUDA cores' reach on this GPU (level E5); None without a ceiling."""
    single = ceilings.of_layers(FP32)[0] if ceilings else None  # a layer's kernels are short: no clock has fallen yet
    if rate is None or single is None or dtype not in ("float32", "float16", "bfloat16"):
        return None
    return rate > BEYOND * single * (1 if dtype == "float32" else HALF_PER_SINGLE)


def _convolves(products: Sequence[TracedKernel]) -> bool:
    """Whether a rate proves nothing: Winograd's and FFT's convolutions need fewer operations than are counted."""
    return any(k.op is not None and "conv" in k.op.name for k in products)


def _most_time(kernels: Sequence[TracedKernel]) -> str | None:
    time: defaultdict[str, float] = defaultdict(float)
    for k in kernels:
        if k.op is not None and k.op.dtype is not None:
            time[k.op.dtype] += k.duration_us
    return max(time, key=lambda dtype: time[dtype]) if time else None
