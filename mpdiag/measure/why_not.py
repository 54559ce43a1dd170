"""Why a layer's time is not on tensor cores, or slower there than it need be; and what mending it gives. No torch.

A gain is in ms of a step's kernel time: measured (products timed alone), or a bound (the traced time of kernels that
would go away); what is neither has no number, and says so. Triggers and remedies follow NVIDIA's matrix multiplication
guide and what users of PyTorch reported; below its trigger nothing is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mpdiag.costs.kernel_names import Purpose, TensorCores, alignment, purpose, tensor_cores
from mpdiag.costs.kernels import WhyNot
from mpdiag.costs.tensor_cores import BF16, FP16, FP32
from mpdiag.measure.products import MULTIPLES, Product, product_of
from mpdiag.measure.trace_events import TracedKernel

MEASURED, FORMULA = "measured", "formula"
BOUND = "bound"  # at most: the traced time of kernels, all of which would have to go away
BY_ARM = "arm"  # of the step itself, not of kernel time: an arm with the remedy was timed beside this one
LAYOUT = "nchw-transposes"
WORTH = 0.02  # of the kernel time: less is not worth a change in the model
FASTER = 1.05  # alone over padded: below it, padding gives nothing that would not be noise
FEW_CHANNELS = 8  # one 16-byte load of a 16-bit type: cuDNN pads to it by itself
HALF = {FP16: "float16", BF16: "bfloat16"}


@dataclass(frozen=True)
class ModuleFacts:
    """What a reason has to know of a module. groups, in_channels: of a convolution, 1 and 0 of anything else."""

    type: str
    groups: int
    in_channels: int
    island: bool


def reasons_of(
    kernels: Sequence[TracedKernel],
    fact: ModuleFacts,
    arithmetic: str,
    total_us: float,
    steps: int,
    timed: Mapping[Product, float],
) -> tuple[WhyNot, ...]:
    """The reasons of one layer; none for an FP32 arm, which is not meant to be on tensor cores."""
    if arithmetic == FP32:
        return ()
    products = [k for k in kernels if purpose(k.name) == Purpose.PRODUCT]
    if not products:
        return (WhyNot("no-product", "it multiplies no matrices: memory is its limit, not arithmetic", "leave it", 0.0,
                       FORMULA),)  # fmt: skip
    grouped = _grouped(products, fact)
    found = [
        _forced_fp32(products, fact, arithmetic, total_us, steps, timed),
        _other_half(products, arithmetic),
        _odd(products, total_us, steps, timed),
        _transposes(kernels, total_us, steps),
        grouped,
        None if grouped else _plain_convolution(products, fact, arithmetic),
        _few_channels(products, fact),
    ]
    return tuple(each for each in found if each is not None)


def products_to_time(kernels: Sequence[TracedKernel], arithmetic: str, total_us: float) -> list[Product]:
    """The products whose timing alone tells a gain: odd ones with their padded shape, FP32 ones with their half."""
    wanted = []
    for product, time_us, _ in _groups(kernels):
        if time_us < WORTH * total_us / 4:  # a layer has three products a step; a small one decides nothing
            continue
        if product.odd and arithmetic != FP32:
            wanted += [product, product.padded]
        if arithmetic in HALF and product.dtype == "float32":
            wanted += [product, replace(product, dtype=HALF[arithmetic])]
    return wanted


def _groups(kernels: Sequence[TracedKernel]) -> list[tuple[Product, float, list[TracedKernel]]]:
    """(product, its kernels' time, its kernels), for each matrix product of the traced steps."""
    found: defaultdict[Product, list[TracedKernel]] = defaultdict(list)
    for k in kernels:
        product = product_of(k.op) if purpose(k.name) == Purpose.PRODUCT else None
        if product is not None:
            found[product].append(k)
    return [(p, sum(k.duration_us for k in ks), ks) for p, ks in found.items()]


def _forced_fp32(
    products: Sequence[TracedKernel],
    fact: ModuleFacts,
    arithmetic: str,
    total_us: float,
    steps: int,
    timed: Mapping[Product, float],
) -> WhyNot | None:
    if arithmetic not in HALF:
        return None
    in_fp32 = [k for k in products if k.op is not None and k.op.dtype == "float32"]
    time = sum(k.duration_us for k in in_fp32)
    if not in_fp32 or time < WORTH * total_us:
        return None
    ops = ", ".join(sorted({k.op.name for k in in_fp32 if k.op}))
    remedy = (
        "it is an FP32 island, on purpose"
        if fact.island
        else "let its inputs stay in 16 bits: no .float() before it, no autocast(enabled=False) around it; "
        "a function of your own: torch.amp.custom_fwd(cast_inputs=...)"
    )
    gain, told = 0.0, False
    for product, time_us, _ in _groups(in_fp32):
        alone, half = timed.get(product), timed.get(replace(product, dtype=HALF[arithmetic]))
        if alone and half:
            gain += max(0.0, (1 - half / alone) * time_us)
            told = True
    return WhyNot(
        "forced-fp32",
        f"{ops} computed in FP32 though the arm is {arithmetic}",
        remedy,
        gain / steps / 1000 if told else None,
        MEASURED if told else "not measured: its shape was not timed in 16 bits",
    )


def _other_half(products: Sequence[TracedKernel], arithmetic: str) -> WhyNot | None:
    """Products in the other 16-bit type: torch's autocast hands FP16 to cuDNN's recurrent layers, whatever is asked."""
    other = {FP16: "bfloat16", BF16: "float16"}.get(arithmetic)
    found = [k for k in products if k.op is not None and k.op.dtype == other]
    if not found or sum(k.duration_us for k in found) < sum(k.duration_us for k in products) / 2:
        return None
    ops = ", ".join(sorted({k.op.name for k in found if k.op}))
    return WhyNot(
        "other-16-bit-type",
        f"{ops} computed in {other} though the arm is {arithmetic}",
        "torch's autocast takes FP16 for cuDNN's recurrent layers; FP16's range asks for a loss scale, or keep them in "
        "FP32"
        if other == "float16"
        else "leave it, or ask for one type",
        None,
        "a matter of range, not of time",
    )


def _odd(
    products: Sequence[TracedKernel], total_us: float, steps: int, timed: Mapping[Product, float]
) -> WhyNot | None:
    """Dimensions that are no multiple of one load, where padding was measured to help."""
    gain, worst, worst_gain, suspected = 0.0, None, 0.0, []
    for product, time_us, kernels in _groups(products):
        if not product.odd or time_us < WORTH * total_us / 4:
            continue
        alone, padded = timed.get(product), timed.get(product.padded)
        if alone is None or padded is None:
            small = [a for a in (alignment(k.name) for k in kernels) if a is not None and a < 8]
            if small:
                suspected.append((product, min(small)))
            continue
        if alone < FASTER * padded:
            continue
        saved = (1 - padded / alone) * time_us
        gain += saved
        if saved > worst_gain:
            worst, worst_gain = (product, alone, padded), saved
    if worst is not None:
        product, alone, padded = worst
        multiple = MULTIPLES[product.dtype]
        return WhyNot(
            "odd-dimensions",
            f"{_shape(product)} takes {alone * 1000:.0f} us alone, {padded * 1000:.0f} us as {_shape(product.padded)}",
            f"make its dimensions multiples of {multiple}: pad the vocabulary, the features or the batch",
            gain / steps / 1000,
            MEASURED,
        )
    if suspected:
        product, elements = suspected[0]
        multiple = MULTIPLES[product.dtype]
        return WhyNot(
            "odd-dimensions",
            f"{_shape(product)} runs in a kernel that loads {elements} elements at a time (align{elements})",
            f"make its dimensions multiples of {multiple}",
            None,
            "not measured: its padded shape was not timed",
        )
    return None


def _shape(product: Product) -> str:
    batch = f"{product.batch} of " if product.batch > 1 else ""
    return f"{batch}{product.m}x{product.n}x{product.k}"


def _transposes(kernels: Sequence[TracedKernel], total_us: float, steps: int) -> WhyNot | None:
    time = sum(k.duration_us for k in kernels if purpose(k.name) == Purpose.TRANSPOSE)
    own = sum(k.duration_us for k in kernels)
    if time < WORTH * own or time < WORTH * total_us / 10:  # a step has dozens of convolutions: each has a small part
        return None
    return WhyNot(
        LAYOUT,
        f"cuDNN turns NCHW into NHWC and back: {time / own:.0%} of its time",
        "model.to(memory_format=torch.channels_last), and the inputs too; then measure again",
        time / steps / 1000,
        BOUND,
    )


def _grouped(products: Sequence[TracedKernel], fact: ModuleFacts) -> WhyNot | None:
    if fact.groups == 1 or _mostly(products, TensorCores.YES):
        return None
    kind = "depthwise" if fact.groups == fact.in_channels else f"of {fact.groups} groups"
    return WhyNot(
        "grouped-convolution",
        f"a convolution {kind}: each group's product is too small for tensor cores, memory is its limit",
        "leave it: fewer groups would be another model",
        0.0,
        FORMULA,
    )


def _plain_convolution(products: Sequence[TracedKernel], fact: ModuleFacts, arithmetic: str) -> WhyNot | None:
    """A convolution in the arm's own type for which cuDNN took an algorithm without tensor cores."""
    own = [k for k in products if k.op is not None and k.op.dtype == HALF.get(arithmetic, "float32")]
    plain = [k for k in own if tensor_cores(k.name) == TensorCores.NO]
    if not fact.in_channels or sum(k.duration_us for k in plain) < sum(k.duration_us for k in own) / 2 or not plain:
        return None
    longest = max(plain, key=lambda k: k.duration_us)
    return WhyNot(
        "no-tensor-core-algorithm",
        f"cuDNN chose {longest.name.removeprefix('void ')[:60]}, which runs on CUDA cores",
        "torch.backends.cudnn.benchmark = True, and room for cuDNN's workspace (128 MB or more: a smaller batch)",
        None,
        "not measured: other algorithms were not timed",
    )


def _few_channels(products: Sequence[TracedKernel], fact: ModuleFacts) -> WhyNot | None:
    if not 0 < fact.in_channels < FEW_CHANNELS or fact.groups > 1:
        return None
    return WhyNot(
        "few-channels",
        f"{fact.in_channels} input channels: cuDNN pads them to {FEW_CHANNELS}, or leaves the tensor cores",
        "leave it: only the first layer is like that",
        None,
        "not measured",
    )


def _mostly(products: Sequence[TracedKernel], answer: TensorCores) -> bool:
    time = sum(k.duration_us for k in products)
    return sum(k.duration_us for k in products if tensor_cores(k.name) == answer) >= time / 2
