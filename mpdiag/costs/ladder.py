"""How sure it is that an arm computed on tensor cores: every level of evidence side by side, contradictions flagged.

E1 hardware counters by type, E2 instructions of the tensor pipe, E3 NVML GPM, E4 kernel names, E5 arithmetic. A level
that cannot tell says why; none says 0 where the truth is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator

from mpdiag.arm_names import BASELINE
from mpdiag.costs.kernel_names import TensorCores, splits_fp32
from mpdiag.costs.kernels import ArmKernels, Flops, KernelTime, Ladder, Level
from mpdiag.costs.tensor_cores import FP32, TF32, CounterEvidence, GpmEvidence

NAMES = {
    "E1": "hardware counters by type",
    "E2": "instructions of the tensor pipe",
    "E3": "NVML GPM",
    "E4": "kernel names",
    "E5": "arithmetic",
}
NOTABLE = 0.05  # of the kernel time in tensor-core kernels: less may well drown in GPM's floor
NEGLIGIBLE = 0.01  # of the kernel time in names that tell nothing: too little to hold up a "no"
APART = 0.25  # counted by the hardware against counted by formula: padding and split products explain less
FOREIGN = 0.1  # of the tensor operations in another type than the arm's: worth a line
NOT_COUNTED = "only {arms} is counted: every arm takes a process of its own and up to a minute"


def ladder_of(
    kernels: ArmKernels | None,
    gpm: GpmEvidence | None = None,
    counters: CounterEvidence | None = None,
    flops: Flops | None = None,
    counters_reason: str | None = None,
    gpm_reason: str | None = None,
) -> Ladder:
    """The ladder of one arm from whatever of it was measured. flops: of one step, to hold counters against.

    counters_reason, gpm_reason: why this arm has none, where it has none.
    """
    if counters is None and counters_reason is not None:
        counters = CounterEvidence("", None, reason=counters_reason)
    if gpm is None and gpm_reason is not None:
        gpm = GpmEvidence("", None, None, None, None, None, 0.0, None, gpm_reason)
    ratio = None if kernels is not None and kernels.arithmetic == FP32 else _of_formulas(counters, flops)
    levels = (_e1(counters, ratio), _e2(counters, kernels), _e3(gpm, kernels), _e4(kernels), _e5(kernels))
    top = next((level for level in levels if level.used is not None), None)
    claim = top.text if top else "not known whether tensor cores ran: no level of evidence gave an answer"
    return Ladder(
        reached=top.level if top else None,
        used=top.used if top else None,
        claim=claim,
        levels=levels,
        disagreements=tuple(_disagreements(levels, kernels, gpm, counters, flops)),
        of_formulas=ratio,
    )


def _level(level: str, used: bool | None, text: str) -> Level:
    return Level(level, NAMES[level], used, text)


def _e1(counters: CounterEvidence | None, of_formulas: float | None) -> Level:
    if counters is None or counters.operations is None:
        return _level("E1", None, (counters.reason if counters else None) or "not measured")
    ran = {name: count for name, count in counters.operations.items() if count > 0}
    if not ran and counters.reason is not None:  # what ran may be of the type that was not counted
        return _level("E1", None, f"{', '.join(map(str.upper, counters.operations))}: none; {_not_counted(counters)}")
    if not ran:
        return _level("E1", False, "no tensor-core operation in a step")
    parts = [f"{count / 1e12:.3g} TFLOP of {name.upper()}" for name, count in sorted(ran.items(), key=lambda i: -i[1])]
    text = f"{', '.join(parts)} tensor-core math a step"
    if of_formulas is not None:
        text += f", {of_formulas:.2f} times the FLOPs by formula"
    return _level("E1", True, text if counters.reason is None else f"{text}; {_not_counted(counters)}")


def _not_counted(counters: CounterEvidence) -> str:
    return f"not counted: {counters.reason}"


def _of_formulas(counters: CounterEvidence | None, flops: Flops | None) -> float | None:
    """What the counters have of all types over the FLOPs by formula of the same batch; None where a part is missing."""
    if counters is None or not counters.operations or counters.reason is not None or flops is None:
        return None
    formulas = flops.by_batch[0] if flops.by_batch else flops.executed  # counters count the first batch
    total = sum(counters.operations.values())
    return total / formulas if total and formulas else None


def _e2(counters: CounterEvidence | None, kernels: ArmKernels | None) -> Level:
    count = counters.instructions if counters else None
    if count is None:
        why = (counters.instructions_reason or counters.reason) if counters else None
        return _level("E2", None, why or "not measured")
    if count == 0:
        return _level("E2", False, "the tensor pipe ran no instruction")
    text = f"the tensor pipe ran {count:,.0f} instructions a step"
    if _products(kernels) == 0:
        return _level("E2", None, f"{text}, but no product was traced: packed FP16 arithmetic runs there too")
    return _level("E2", True, text)


def _e3(gpm: GpmEvidence | None, kernels: ArmKernels | None) -> Level:
    if gpm is None or gpm.share is None:
        return _level("E3", None, (gpm.reason if gpm else None) or "not measured")
    text = f"tensor pipe active {gpm.share:.1%} of the time while this ran alone"
    if not gpm.used:
        return _level("E3", None, f"{text}; {gpm.reason or 'not above its threshold'}")
    if _products(kernels) == 0:
        return _level("E3", None, f"{text}, but no product was traced: packed FP16 arithmetic runs there too")
    return _level("E3", True, text)


def _products(kernels: ArmKernels | None) -> float | None:
    """The products' share of the kernel time, None where nothing was traced."""
    return kernels.time.matrix_share if kernels and kernels.time else None


def _e4(kernels: ArmKernels | None) -> Level:
    time = kernels.time if kernels else None
    if time is None:
        return _level("E4", None, (kernels.reason if kernels else None) or "not measured")
    yes, unclear = time.by_class.get("yes", 0.0), time.by_class.get("ambiguous", 0.0)
    unknown = time.by_class.get("unknown", 0.0)
    rest = f", {unclear:.1%} in names that can be either, {unknown:.1%} unknown"
    if yes > 0:
        return _level("E4", True, f"{yes:.1%} of GPU kernel time in kernels known as tensor-core{rest}")
    if unclear + unknown > NEGLIGIBLE:
        return _level("E4", None, f"no kernel known as tensor-core{rest}")
    return _level(
        "E4", False, "no kernel of the step is known as a tensor-core kernel" + (rest if unclear + unknown else "")
    )


def _e5(kernels: ArmKernels | None) -> Level:
    layers = kernels.layers if kernels else None
    if layers is None:
        why = (kernels.layers_reason or kernels.reason) if kernels else None
        return _level("E5", None, why or "not measured")
    if kernels is not None and kernels.shared is not None:
        return _level("E5", None, kernels.shared)
    judged = [layer for layer in layers if layer.impossible_without is not None]
    if not judged:
        return _level("E5", None, "no layer's FLOP/s could be held against the CUDA cores' ceiling")
    beyond = [layer for layer in judged if layer.impossible_without]
    if not beyond:
        who = "the one layer that was judged is not" if len(judged) == 1 else f"none of {len(judged)} layers is"
        return _level("E5", None, f"{who} faster than CUDA cores can be, which proves nothing")
    best = max(beyond, key=lambda layer: layer.tflops_per_s or 0.0)
    text = (
        f"{_layers(len(beyond), len(judged))} faster than CUDA cores can ({best.name or 'the model'}: "
        f"{best.tflops_per_s:.3g} TFLOP/s): impossible without tensor cores"
    )
    return _level("E5", True, text)


def _layers(some: int, of: int) -> str:
    if of == 1:
        return "the one layer that was judged runs"
    return f"{some} of {of} layers {'runs' if some == 1 else 'run'}"


def _disagreements(
    levels: tuple[Level, ...],
    kernels: ArmKernels | None,
    gpm: GpmEvidence | None,
    counters: CounterEvidence | None,
    flops: Flops | None,
) -> Iterator[str]:
    answers = {level.level: level.used for level in levels}
    told = [level for level in levels if level.used is not None]
    for first, second in ((a, b) for i, a in enumerate(told) for b in told[i + 1 :]):
        if first.used != second.used:
            yield f"{first.level} ({first.name}): {first.text}; {second.level} ({second.name}): {second.text}"
    yes = kernels.time.by_class.get("yes", 0.0) if kernels and kernels.time else 0.0
    below = gpm is not None and gpm.used is None and gpm.share_of_active is not None and gpm.threshold is not None
    if below and answers["E4"] and yes >= NOTABLE:
        yield (
            f"E4 (kernel names) has {yes:.1%} of the kernel time in tensor-core kernels, and E3 (NVML GPM) reads no "
            "more than work without products does"
        )
    arithmetic = kernels.arithmetic if kernels else None
    if kernels is not None and arithmetic == FP32:  # of whose products the formulas count those on CUDA cores too
        yield from _in_fp32(kernels, [level for level in told if level.used])
    else:
        yield from _types(arithmetic, counters)
        yield from _against_formulas(counters, flops)


def _in_fp32(kernels: ArmKernels, told: list[Level]) -> Iterator[str]:
    """Where an FP32 arm used tensor cores, if any level says that it did."""
    if not told:
        return
    who = f"the {'IEEE ' if kernels.arm == BASELINE else ''}FP32 arm uses tensor cores"
    yes = kernels.time.by_class.get("yes", 0.0) if kernels.time else 0.0
    split = _named(kernels.time, split=True)
    attention = min(yes, sum(split.values()))
    if attention > 0:
        yield (
            f"{who} in: attention ({_first(split)}), {attention:.1%} of its kernel time. That is no fault: torch's "
            "memory-efficient attention makes each FP32 product of three TF32 ones, which is about as exact"
        )
    if yes - attention > NEGLIGIBLE or (yes > 0 and not split):
        others = _first(_named(kernels.time, split=False)) or "products"
        yield (
            f"{who} in: {others}, {yes - attention:.1%} of its kernel time: in TF32 (torch's default for convolutions, "
            "or an override variable)"
        )
    if not yes:
        unclear = kernels.time.by_class.get("ambiguous", 0.0) if kernels.time else 0.0
        where = f", maybe in the {unclear:.1%} of its kernel time whose names can be either" if unclear else ""
        yield f"{who} by {told[0].level} ({told[0].name}); no kernel's name shows where{where}"


def _named(time: KernelTime | None, split: bool) -> dict[str, float]:
    """Tensor-core kernels among those with the most time, by name: those of FP32 attention, or all others.

    Shares of the kernel time.
    """
    found: dict[str, float] = {}
    for kernel in time.top if time else ():
        if time and kernel.tensor_cores == TensorCores.YES and splits_fp32(kernel.name) == split:
            name = kernel.name.removeprefix("void ").partition("(")[0].partition("<")[0][:60]
            found[name] = found.get(name, 0.0) + kernel.time_ms / time.total_ms
    return found


def _first(named: dict[str, float]) -> str:
    """The two with the most time, and how many there are beside them."""
    names = sorted(named, key=lambda name: -named[name])
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _types(arithmetic: str | None, counters: CounterEvidence | None) -> Iterator[str]:
    if not counters or not counters.operations or counters.reason is not None or arithmetic in (None, FP32):
        return
    total = sum(counters.operations.values())
    wanted = str(arithmetic).lower()
    for name, count in counters.operations.items():
        if total and name != wanted and count >= FOREIGN * total:
            why = ", which FP32 layers of the arm may do" if name == TF32.lower() else ""
            yield f"{count / total:.0%} of the tensor-core operations of this {arithmetic} arm are {name.upper()}{why}"


def _against_formulas(counters: CounterEvidence | None, flops: Flops | None) -> Iterator[str]:
    ratio = _of_formulas(counters, flops)
    if counters and counters.operations and ratio is not None and abs(ratio - 1) > APART:
        total = sum(counters.operations.values())
        yield (
            f"the hardware counted {total / 1e12:.3g} TFLOP on tensor cores and formulas {total / ratio / 1e12:.3g} "
            "in all products of a step"
        )
