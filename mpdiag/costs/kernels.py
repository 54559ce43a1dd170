"""What one arm's GPU kernels were: the time in tensor-core kernels, by type, and layer by layer. Saved in the JSON.

All times are of traced steps and per step. Kernel durations hold under a profiler; step times do not, so what is
held against a step uses the untraced one. A reason stands beside whatever was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LAUNCH_BOUND = "launch-bound"  # the GPU waits for the host, and its kernels are as short as a launch
GPU_WAITS = "gpu-waits"  # the GPU waits for the host, whose kernels are longer than that
WAITING = (LAUNCH_BOUND, GPU_WAITS)
SCALERS_READ = "GradScaler.step (aten::item)"  # the one number that a GradScaler reads a step: were there infinities


@dataclass(frozen=True)
class NamedKernel:
    """One kernel of one operator. dtype: of the operator's inputs, never read from the name; None where it has none.

    tensor_cores: "yes", "no", "ambiguous" or "unknown". calls and time_ms are per step.
    """

    name: str
    op: str | None
    dtype: str | None
    tensor_cores: str
    calls: float
    time_ms: float


@dataclass(frozen=True)
class HostWait:
    """Calls in which the host waits for the GPU, so that nothing more is queued meanwhile.

    call: of the CUDA API. op: the outermost operator around it, SCALERS_READ for a GradScaler's, None where it is in
    none (torch.cuda.synchronize). module: as of a kernel. calls and time_ms are per traced step. lost_ms: how long the
    GPU had nothing to do in them and right after, until its next work began; None in older records. The rest of a wait
    costs nothing: the GPU works.
    """

    call: str
    op: str | None
    module: str | None
    calls: float
    time_ms: float
    lost_ms: float | None = None


@dataclass(frozen=True)
class KernelTime:
    """Where the GPU's kernel time of a step went; every share is of total_ms, 0..1.

    total_ms: of all kernels added up, more than by the clock where streams overlap. by_class: shares of yes, no,
    ambiguous, unknown. by_dtype: of each operator's input type. tensor_by_dtype: the tensor-core time alone, also as
    shares of total_ms. matrix: products and convolutions. busy_ms: the union of all kernels and copies. busy_share:
    that of step_ms, the untraced step where it was given (step_traced false); above 1 where the traced steps took
    longer than the timed one. waits: of the host for the GPU, longest first.
    """

    steps: int
    kernels: float
    total_ms: float
    by_class: dict[str, float]
    by_dtype: dict[str, float]
    tensor_by_dtype: dict[str, float]
    matrix_share: float
    cast_share: float
    transpose_share: float
    optimizer_share: float
    memcpy_ms: float
    median_kernel_us: float
    busy_ms: float
    step_ms: float
    step_traced: bool
    busy_share: float
    top: tuple[NamedKernel, ...] = ()
    unknown: tuple[NamedKernel, ...] = ()
    waits: tuple[HostWait, ...] = ()


@dataclass(frozen=True)
class WhyNot:
    """One thing that keeps time from tensor cores, and what mending it would give.

    code: a stable word. gain_ms: of a step's kernel time, which is little or none of the step's where the GPU waits for
    the host (a finding of the arm, one of WAITING); None where it is not known. gain_from: "measured" (products timed
    alone), "bound" (at most: the traced time of kernels that would go away), "formula" (at most), "arm" (of the step
    itself: an arm with the remedy was timed), or why there is none.
    """

    code: str
    text: str
    remedy: str
    gain_ms: float | None
    gain_from: str


@dataclass(frozen=True)
class LayerUse:
    """One module's own work (not its children's).

    forward_ms, backward_ms, time_share: by the clock, in which kernels that overlap count once; the share is of the
    time in which any kernel ran. tensor_cores: "yes", "no", "mixed", or "unknown", over the time of its products.
    dtype: of its products' inputs.
    flops: per step, forward and backward. tflops_per_s: flops over the time of its products ("profiled time").
    of_ceiling: that over the ceiling measured for its dtype, the burst's if of_burst, else the sustained one; above 1
    where the clock, the shape or the algorithm is better than the ceiling's. impossible_without: its rate is beyond
    what CUDA cores reach on this GPU, so tensor cores ran (one-sided: False proves nothing); None where no ceiling was
    measured, and for convolutions, whose algorithms may need fewer operations than are counted.
    """

    name: str
    module_type: str
    forward_ms: float
    backward_ms: float
    time_share: float
    dtype: str | None
    tensor_cores: str
    flops: int | None = None
    tflops_per_s: float | None = None
    of_ceiling: float | None = None
    impossible_without: bool | None = None
    why_not: tuple[WhyNot, ...] = ()
    of_burst: bool = False


@dataclass(frozen=True)
class Level:
    """One level of evidence. used: True, False or None (cannot tell). text: what it read, or why it read nothing."""

    level: str
    name: str
    used: bool | None
    text: str


@dataclass(frozen=True)
class Ladder:
    """How sure it is that an arm computed on tensor cores.

    reached: the highest level that gave an answer ("E1" the highest, "E5" the lowest), None where none did. used: its
    answer. claim: the one sentence that it allows. disagreements: levels that contradict each other, a finding.
    of_formulas: the operations that E1 counted over the FLOPs by formula of the same step (1.0 where both agree), a
    cross-check of both; None where one of them is missing or a type was not counted, and for an FP32 arm.
    """

    reached: str | None
    used: bool | None
    claim: str
    levels: tuple[Level, ...]
    disagreements: tuple[str, ...] = ()
    of_formulas: float | None = None


@dataclass(frozen=True)
class ArmKernels:
    """What a trace of one arm showed, level E4 of the evidence; `time` and `layers` None with the reason.

    arithmetic: of its products, "FP16", "BF16", "TF32" or "FP32" (IEEE, or what the user's settings say). findings:
    what holds for the whole step. layers_reason: why single layers are not told. tflops_per_s: the model's FLOPs over
    the untraced step; of_ceiling: that over what this GPU sustains in the arm's arithmetic; None for the
    throughput_reason. ladder: with the other levels of evidence, once they are known. shared: why no time here is this
    run's alone (others used the GPU): no rate and no waiting is told and nothing was timed again; names and types hold
    all the same.
    """

    arm: str
    arithmetic: str | None
    time: KernelTime | None
    layers: tuple[LayerUse, ...] | None = None
    findings: tuple[WhyNot, ...] = ()
    tflops_per_s: float | None = None
    of_ceiling: float | None = None
    ladder: Ladder | None = None
    reason: str | None = None
    layers_reason: str | None = None
    throughput_reason: str | None = None
    shared: str | None = None


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one training step, counted on an eager FP32 run; a multiply-add is two.

    The mean over the batches that are timed, where these differ. by_batch: what each of them executes, in their order:
    of all where they differ, else of the first two (empty in older records). forward + backward = model. executed: with
    what checkpointing computed twice. by_module: forward and backward of each module's own operators. corrections: what
    torch's counter gets wrong and was mended, with the FLOPs before and after. uncounted: operators that multiply
    matrices and have no formula, so that the total is too small.
    """

    forward: int
    backward: int
    recomputed: int
    by_module: dict[str, tuple[int, int]] = field(default_factory=dict)
    by_op: dict[str, int] = field(default_factory=dict)
    corrections: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    by_batch: tuple[int, ...] = ()

    @property
    def varied(self) -> bool:
        """Whether batches differ in their FLOPs."""
        return len(set(self.by_batch)) > 1

    @property
    def model(self) -> int:
        """What the model needs: forward and backward, nothing twice."""
        return self.forward + self.backward

    @property
    def executed(self) -> int:
        """What the GPU computes, recomputation included."""
        return self.model + self.recomputed
