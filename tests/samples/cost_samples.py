"""What a scan on a GPU measured, by hand: a ResNet on an H100, with every field of every record of costs/ filled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from mpdiag.costs.energy import EnergyUse
from mpdiag.costs.gpu import GpuSharing, GpuState
from mpdiag.costs.kernels import ArmKernels, Flops, HostWait, KernelTime, LayerUse, NamedKernel, WhyNot
from mpdiag.costs.ladder import ladder_of
from mpdiag.costs.largest_batch import BatchTrial, LargestBatch
from mpdiag.costs.memory import MemorySplit, MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.costs.tensor_cores import BodyReading, Calibration, Ceilings, CounterEvidence, GpmEvidence
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.diagnosis import Comparison, Trial
from mpdiag.measure.turns import turns_of

MIB = 2**20
ROUNDS = 10
CONFIGURED = "FP32 as configured (cuda.matmul=none, cudnn.conv=tf32, cudnn.rnn=tf32)"
ARMS = {
    "fp32": ("FP32", 154.1),
    "fp32-configured": (CONFIGURED, 73.4),
    "fp16": ("FP16 autocast", 50.5),
    "bf16": ("BF16 autocast", 60.6),
    "tf32": ("FP32 with TF32 products", 71.8),
    "fp16-channels-last": ("FP16 autocast, channels_last", 30.1),
}
LATE = "an arm takes at least 20 s, the time budget had 9 s left for it"
COMPILE_FAILED = "RuntimeError: a graph with <break> in it"


def blocks(middle: float, phase: float, lost: int | None = None) -> tuple[float | None, ...]:
    """Block medians around a geometric mean that scatter by half a percent, the same at every call; one may be lost."""
    wobble = [0.004 * (math.sin(1.7 * i + phase) + math.sin(0.6 * i * phase)) for i in range(ROUNDS)]
    mean = sum(w for i, w in enumerate(wobble) if i != lost) / (ROUNDS - (lost is not None))
    return tuple(None if i == lost else middle * math.exp(w - mean) for i, w in enumerate(wobble))


def arm_time(arm: str, phase: float, lost: int | None = None) -> ArmTime:
    precision, middle = ARMS["fp32" if arm == "again" else arm]
    return ArmTime(
        arm, precision, middle, (middle * 0.996, middle * 1.006), middle * 1.01, blocks(middle, phase, lost),
        ROUNDS * 20, 0 if lost is None else 3, None, (1965, 1980), (57, 63), False,
    )  # fmt: skip


def timing() -> Timing:
    timed = [arm_time(arm, phase, 4 if arm == "fp16" else None) for phase, arm in enumerate(ARMS)]
    timed[0] = dataclasses.replace(timed[0], clocks_mhz=(1740, 1980), throttled=True, limited_by=("power cap",))
    failed = ArmTime("fp16-compile", "FP16 autocast, torch.compile", None, None, None, reason=COMPILE_FAILED)
    note = "the arms did not fit in memory together: each block began with a fresh model"
    order = turns_of((*ARMS, "fp16-compile", "again"), ROUNDS)
    return Timing(
        (*timed, failed), arm_time("again", 7), 128, ROUNDS, False, 148.2, (note,), order, sharing(0.5, None), 1
    )


def sharing(seconds: float, idle_watts: float | None) -> GpuSharing:
    return GpuSharing(
        None, 0.0, False, seconds, "busy: active in more than 2 % of the time", "NVML does not list other processes",
        0.0, idle_watts, GpuState(1980, 41, 131.5, ("nothing to do",)),
    )  # fmt: skip


def memory() -> tuple[MemoryUse, ...]:
    weights, state = 97 * MIB, 195 * MIB
    fp32 = MemorySplit(weights, MIB, 0, state, 73 * MIB, {"float32": 9800 * MIB, "int64": 100 * MIB}, 0, 64 * MIB,
                       {"forward": 30 * MIB, "backward": 890 * MIB}, 9 * MIB)  # fmt: skip
    fp16 = MemorySplit(weights, MIB, 12 * MIB, state, 73 * MIB, {"float16": 4900 * MIB, "float32": 60 * MIB}, 49 * MIB,
                       64 * MIB, {"backward": 450 * MIB}, 9 * MIB)  # fmt: skip

    def use(arm: str, split: MemorySplit) -> MemoryUse:
        return MemoryUse(
            arm, ARMS[arm][0], split.total, split.total + 300 * MIB, 1, split.total + 900 * MIB, None, 128, 25_557_032,
            "expandable_segments:True", split, None, split.total, "backward", "layer1.0.conv1.weight",
            notes=("cuDNN searched for algorithms (cudnn.benchmark)",),
        )  # fmt: skip

    return use("fp32", fp32), use("fp16", fp16), MemoryUse.absent("bf16", "BF16 autocast", LATE)


def energy() -> tuple[EnergyUse, ...]:
    fp32 = EnergyUse(
        "fp32", 0.781, (0.772, 0.790), 0.612, 3, 15.1, 131.5, None, 0.216, 648.0, 12544, (0.785, 0.779, 0.779),
        (1740, 1980), (58, 63), True, ("power cap",), step_time_ms=154.9,
    )  # fmt: skip
    fp16 = EnergyUse(
        "fp16", 0.229, (0.221, 0.237), 0.177, 3, 15.0, 131.5, None, 0.227, 580.0, 38016, (0.231, 0.228, 0.228),
        (1965, 1980), (60, 62), False, (), "steps were skipped in 1 of the windows; a skipped step takes less",
        step_time_ms=50.6,
    )  # fmt: skip
    other = "1 other process(es) used this GPU meanwhile"
    return fp32, fp16, EnergyUse("bf16", None, None, None, 3, 15.0, 131.5, other, above_idle_reason=other)


def gpm() -> tuple[GpmEvidence, ...]:
    shares = {"any_tensor": 0.318, "hmma_tensor": 0.318, "sm": 0.77, "dram_bandwidth": 0.41}
    low = "0.4% of the active time is not above the threshold of 2.3%: work without matrix products reads as much"
    return (
        GpmEvidence("fp32", None, 0.003, 0.004, 0.001, 0.0233, 15.0, {"any_tensor": 0.003, "sm": 0.81}, low),
        GpmEvidence("fp16", True, 0.318, 0.413, 0.409, 0.0233, 15.0, shares),
    )


def counters() -> tuple[CounterEvidence, ...]:
    fp16 = CounterEvidence(
        "fp16", {"fp16": 2.7e12, "tf32": 0.4e12, "bf16": 0.0}, 6.4e8, {"sm__inst_executed_pipe_tensor.sum": 6.4e8},
        "GH100", 3,
    )  # fmt: skip
    refused = CounterEvidence(
        "bf16", None, reason="cuptiProfilerInitialize: not permitted", remedy="NVreg_RestrictProfilingToAdminUsers=0",
        instructions_reason="cuptiProfilerInitialize: not permitted",
    )  # fmt: skip
    return fp16, refused


def flops() -> Flops:
    return Flops(
        10**12, 2 * 10**12, 10**11, {"": (0, 0), "layer1.0.conv1": (10**10, 2 * 10**10)}, {"aten.convolution": 10**12},
        ("backward of grouped convolutions: 1 (torch's counter says 2)",), ("0.1 TFLOP are computed a second time",),
        ("my::product",), (31 * 10**11, 31 * 10**11),
    )  # fmt: skip


def layers(half: bool) -> tuple[LayerUse, ...]:
    if not half:
        return (LayerUse("layer1.0.conv1", "Conv2d", 9.1, 21.2, 0.2, "float32", "no", 3 * 10**10, 33.0, 0.64, False),)
    layout = WhyNot("nchw-transposes", "cuDNN turns NCHW into NHWC: 40% of its time", "channels_last", 1.6, "measured")
    plain = WhyNot("no-product", "it multiplies no matrices", "leave it", 0.0, "formula")
    return (
        LayerUse(
            "layer1.0.conv1",
            "Conv2d",
            1.6,
            4.1,
            0.12,
            "float16",
            "yes",
            3 * 10**10,
            430.0,
            0.53,
            True,
            (layout,),
            True,
        ),
        LayerUse("layer1.0.bn1", "BatchNorm2d", 0.6, 1.2, 0.04, "float16", "no", why_not=(plain,)),
    )


def kernel_time(half: bool) -> KernelTime:
    step, total = (50.5, 48.0) if half else (154.1, 150.0)
    name = "sm90_xmma_fprop_implicit_gemm_f16f16" if half else "sm80_xmma_fprop_implicit_gemm_f32f32"
    dtype, answer = ("float16", "yes") if half else ("float32", "no")
    on, off = (0.52, 0.44) if half else (0.0, 0.96)
    return KernelTime(
        3, 640.0, total, {"yes": on, "no": off, "ambiguous": 0.01, "unknown": 0.03},
        {dtype: 0.97, "not known": 0.03}, {"float16": 0.52} if half else {}, 0.55, 0.02, 0.27 if half else 0.0, 0.02,
        0.05, 41.0, total - 1, step, False, (total - 1) / step,
        (NamedKernel(name, "aten::cudnn_convolution", dtype, answer, 53.0, 0.5 * total),),
        (NamedKernel("their_<kernel>", None, None, "unknown", 2.0, 0.03 * total),),
        (HostWait("cudaStreamSynchronize", "GradScaler.step (aten::item)", None, 1.0, 3.1, 0.9),) if half else (),
    )  # fmt: skip


def kernels() -> tuple[ArmKernels, ...]:
    layout = WhyNot("nchw-transposes", "layout changes take 27% of the kernel time", "channels_last", 12.9, "measured")
    fp32 = ArmKernels("fp32", "FP32", kernel_time(False), layers(False), (), 19.5, 0.38)
    fp16 = ArmKernels("fp16", "FP16", kernel_time(True), layers(True), (layout,), 59.4, 0.08)
    why = "the trace was empty"
    bf16 = ArmKernels("bf16", "BF16", None, reason=why, layers_reason=why, throughput_reason=why)
    by_arm, counted = {each.arm: each for each in gpm()}, {each.arm: each for each in counters()}
    return tuple(
        dataclasses.replace(each, ladder=ladder_of(each, by_arm.get(each.arm), counted.get(each.arm), flops()))
        for each in (fp32, fp16, bf16)
    )


def largest_batch() -> tuple[LargestBatch, ...]:
    card = 81_559 * MIB
    full = "CUDA out of memory"

    def found(arm: str, batch: int, slope: int, speed: float, at_least: bool) -> LargestBatch:
        fixed = 900 * MIB
        trials = (
            BatchTrial(128, True, fixed + 128 * slope),
            BatchTrial(batch, True, fixed + batch * slope),
            BatchTrial(batch + 24, False, None, full),
        )
        return LargestBatch(
            arm, ARMS[arm][0], batch, at_least, batch + 24, full, fixed + batch * slope, card, card - card // 20, True,
            fixed, slope, 128, speed, 1e3 * batch / speed, None, trials, None, ("samples are repeated beyond 128",),
        )  # fmt: skip

    return (
        found("fp32", 872, 85 * MIB, 842.0, False),
        found("fp16", 1656, 44 * MIB, 2590.0, True),
        LargestBatch.absent("bf16", "BF16 autocast", "the time budget was used up"),
    )


def bodies() -> tuple[BodyReading, ...]:
    high, low = {"any_tensor": 0.86, "sm": 0.99}, {"any_tensor": 0.001, "sm": 0.99}
    return (
        BodyReading(
            "FP16 matmul",
            1.1,
            742.0,
            None,
            high,
            2e-4,
            1755,
            690.0,
            ("power cap",),
            first_clock_mhz=1980,
            burst_tflops=812.0,
            burst_clock_mhz=1965,
        ),
        BodyReading("BF16 matmul", 0.6, reason="torch.OutOfMemoryError", gpm_reason="it did not run"),
        BodyReading("TF32 matmul", 0.6, 380.0, None, high, 3e-4, 1800, 655.0, ()),
        BodyReading("IEEE FP32 matmul", 0.6, 51.9, None, low, 3e-7, 1980, 540.0, ()),
        BodyReading("FP16 elementwise", 0.6, None, None, {"any_tensor": 0.003, "sm": 0.95}),
        BodyReading("copy", 0.6, None, 2890.0, low),
    )


def full_costs() -> Costs:
    """All that can be measured, on a GPU of its own."""
    return Costs(
        timing=timing(),
        memory=memory(),
        energy=energy(),
        gpm=gpm(),
        kernels=kernels(),
        flops=flops(),
        counters=counters(),
        largest_batch=largest_batch(),
        calibration=Calibration(bodies(), True, 0.0233, 0.0033, 0.86, "half again the floor"),
        ceilings=Ceilings(
            {"FP16": 742.0, "TF32": 380.0, "FP32": 51.9}, 2890.0, 8192, 3.6, {"FP16 matmul": 1755},
            {"FP16 matmul": 690.0}, {"FP16 matmul": ("power cap",)}, {"BF16": "torch.OutOfMemoryError"},
            {"FP16 matmul": 1.1, "copy": 0.4},
            {"FP16 matmul": "not steady yet: the clock fell from 1,980 to 1,755 MHz within 1.1 s (power cap)"},
            {"FP16": 812.0}, {"FP16 matmul": 1965},
        ),
        sharing=sharing(2.5, 131.5),
        seconds=612.4,
        largest_batch_seconds=171.3,
    )  # fmt: skip


def comparisons_of(costs: Costs) -> tuple[Comparison, ...]:
    """What the verification makes of them."""
    from mpdiag.verify.cost_ratios import cost_comparisons  # imports torch, which not every test of a page needs

    arms = [each.arm for each in costs.timing.arms] if costs.timing else []
    return tuple(cost_comparisons(costs, "fp32", arms))


def trials_with(trials: Sequence[Trial], costs: Costs) -> tuple[Trial, ...]:
    """The trials as the verification fills them in."""
    from mpdiag.verify.cost_ratios import with_costs  # as above

    return tuple(with_costs(trials, costs))


def with_reasons(costs: Costs) -> Costs:
    """The same with every reason given too, and batches of two sizes, as no run has it: what is saved may leave nothing
    out.
    """
    why = {item.name: "why" for item in dataclasses.fields(Costs) if item.name.endswith("_reason")}
    assert costs.calibration is not None
    assert costs.timing is not None
    timing = dataclasses.replace(costs.timing, samples=96.5, batch_sizes=(128, 65))
    arms = tuple(dataclasses.replace(each, shared="others worked on this GPU") for each in costs.kernels)
    calibration = dataclasses.replace(costs.calibration, reason="why")
    return dataclasses.replace(costs, calibration=calibration, kernels=arms, timing=timing, **why)
