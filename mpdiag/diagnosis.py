"""Every saved record; saved.py turns them into JSON and back.

Names are promises to other programs (docs: README, "The JSON"). What could not be measured is None with its
reason in a field beside it: never 0, never missing. Shares are fractions 0..1; exponents and scales are log2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mpdiag.accuracy import Comparison as Comparison  # `as`: three of these are records too, and found here
from mpdiag.accuracy import ControlOutcome, CurveBand
from mpdiag.blocks import NOT_ASKED, BlockCounts
from mpdiag.costs.record import NOT_MEASURED, Costs
from mpdiag.drift import WindowAt
from mpdiag.foretold import Prediction
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import LoopFacts
from mpdiag.operations import NOT_OBSERVED, OpTable
from mpdiag.origin import Environment as Environment
from mpdiag.origin import TargetRecord as TargetRecord
from mpdiag.other_formats import FormatChoice, FormatForecast
from mpdiag.plan import IslandPlan

SCHEMA_VERSION = 1  # 1: the first

SEVERITIES = ("error", "warning", "info")
VERDICTS = ("go", "go-with-changes", "no-go", "inconclusive")
NOT_ASKED_FOR = "verification was not asked for"
BF16_SNIPPET = """\
with torch.autocast("cuda", dtype=torch.bfloat16):
    loss = compute_loss(model, batch)
loss.backward()  # BF16 has FP32's range: no loss scale
optimizer.step()
optimizer.zero_grad()
"""


class TensorKind(StrEnum):
    """What a tensor is to the training step."""

    ACTIVATION = "activation"
    ACTIVATION_GRADIENT = "activation_gradient"
    WEIGHT = "weight"
    WEIGHT_GRADIENT = "weight_gradient"
    WEIGHT_UPDATE = "weight_update"


@dataclass(frozen=True)
class TensorTable:
    """The exponents of one tensor over the steps seen.

    dtype: as captured. amp_dtype: the type it takes under CUDA FP16 autocast (None: not known). elements: per
    step. abs_max, abs_min: largest and smallest non-zero finite magnitude over all steps; abs_max_by_step: one
    a step. stagnant: share of the updates that would not move a weight stored in that format (in the weight's own
    format, where it is 16-bit already).
    noise_floor_log2: elements below 2^this are rounding noise, mathematically zero (None: not known to be any);
    noise_level: all of them are. sampled: share of the elements that was counted, None where it was all of them.
    blocks: relative to the largest of their blocks, in the first step observed; None for blocks_reason.
    """

    name: str
    module_type: str
    kind: TensorKind
    dtype: str
    elements: int
    steps: int
    histogram: ExponentHistogram
    abs_max: float | None = None
    abs_min: float | None = None
    abs_max_by_step: tuple[float, ...] = ()
    amp_dtype: str | None = None
    stagnant: dict[str, float] | None = None
    noise_floor_log2: int | None = None
    noise_level: bool = False
    source: str | None = None
    sampled: float | None = None
    blocks: BlockCounts | None = None
    blocks_reason: str | None = NOT_ASKED

    @property
    def signal(self) -> ExponentHistogram:
        """The histogram without what lies below the noise floor: what FP16 could lose."""
        return self.histogram if self.noise_floor_log2 is None else self.histogram.from_exponent(self.noise_floor_log2)


@dataclass(frozen=True)
class SelfTest:
    """Whether the probe left the training bit-identical.

    unchanged: True, False, or None when the job differs from itself without a probe (or was not tested: reason).
    difference: largest absolute difference of losses and gradients with and without the probe; control: the
    same between two runs without it.
    """

    unchanged: bool | None
    steps: int
    difference: float | None = None
    control: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Capture:
    """The observed FP32 run. operations: of the second pass; None without it, operations_reason says why."""

    precision: str
    device: str
    steps: int
    seed: int
    unchanged: bool | None
    selftest: SelfTest
    tables: tuple[TensorTable, ...]
    losses: tuple[float, ...] = ()
    loss_amp_dtype: str | None = None
    amp_error: str | None = None
    amp_nonfinite: tuple[str, ...] = ()
    amp_vanished: tuple[str, ...] = ()
    amp_fed_nonfinite: tuple[str, ...] = ()
    amp_loss_finite: bool | None = None
    input_abs_max: float | None = None
    not_seen: tuple[str, ...] = ()
    counted_by: str = "torch"
    reason: str | None = None
    operations: tuple[OpTable, ...] | None = None
    operations_reason: str | None = NOT_OBSERVED
    loop: LoopFacts | None = None

    def of_kind(self, *kinds: TensorKind) -> tuple[TensorTable, ...]:
        """The tables of some kinds, in the order captured."""
        return tuple(t for t in self.tables if t.kind in kinds)


@dataclass(frozen=True)
class ScalePoint:
    """One point of the loss-scale curve: pooled shares of the FP16 gradients at 2^log2_scale."""

    log2_scale: int
    underflow: float
    energy_lost: float
    overflow: float


@dataclass(frozen=True)
class LossScaleAdvice:
    """The recommended loss scale and its whole feasible window [2^lower_log2, 2^upper_log2].

    limited_by names the tensors that bind each end. underflow_before and _after are the pooled shares lost at
    scale 1 and at the recommended scale. lower > upper: no scale serves all, log2_scale is None.
    """

    log2_scale: int | None
    mode: str
    lower_log2: int | None
    upper_log2: int | None
    limited_by: dict[str, tuple[str, ...]]
    underflow_before: float | None
    underflow_after: float | None
    energy_lost_before: float | None
    energy_lost_after: float | None
    snippet: str | None
    reason: str
    growth_interval: int | None = None
    curve: tuple[ScalePoint, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One diagnosis. subject: the tensor, module or part it is about; evidence: the numbers and their limits."""

    code: str
    name: str
    severity: str
    subject: str
    message: str
    evidence: dict[str, int | float | str | None]
    remedy: str
    snippet: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Advice:
    """What to do, from the capture alone. drift: the window at several points of training, where they were observed.

    keep_fp32: where something overflows, what plan's search found; plan: that search, None where none was called for.
    format_choice: the format to train in on this GPU, made anew after each stage; None before any.
    """

    format: str
    loss_scale: LossScaleAdvice
    findings: tuple[Finding, ...]
    keep_fp32: tuple[str, ...] = ()
    drift: tuple[WindowAt, ...] = ()
    other_formats: tuple[FormatForecast, ...] = ()
    plan: IslandPlan | None = None
    format_choice: FormatChoice | None = None


@dataclass(frozen=True)
class Trial:
    """One training run of the verification. What is None has its reason in not_measured[field].

    A reason that begins with "does not apply" tells apart what this arm cannot have. tensor_core: shares 0..1 of the
    time that the device's pipes were active.
    """

    arm: str
    precision: str
    emulated: bool
    seed: int
    steps: int
    losses: tuple[float, ...]
    metric: dict[str, float] | None = None
    skipped_steps: int | None = None
    loss_scales_log2: tuple[float, ...] | None = None
    final_log2_scale: float | None = None
    peak_memory_bytes: int | None = None
    step_time_ms: float | None = None
    step_time_iqr_ms: tuple[float, float] | None = None
    timed_steps: int | None = None
    tensor_core: dict[str, float] | None = None
    energy_joules_per_sample: float | None = None
    error: str | None = None
    not_measured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """The mixed-precision runs beside FP32, and what they say together.

    train_with: "fp16", "fp16-plan" (FP16 with the plan's FP32 islands) or "bf16", the precision that the verdict lets
    the job train in; None while none is shown. curves: one band an arm. controls: one outcome a control that was run.
    """

    trials: tuple[Trial, ...]
    comparisons: tuple[Comparison, ...]
    verdict: str | None
    reason: str
    prediction: Prediction | None = None
    prediction_reason: str | None = "not measured: FP16 was not counted"
    cut: tuple[str, ...] = ()
    train_with: str | None = None
    curves: tuple[CurveBand, ...] = ()
    controls: tuple[ControlOutcome, ...] = ()
    costs: Costs = NOT_MEASURED


@dataclass(frozen=True)
class Diagnosis:
    """Everything one scan found; what reports are drawn from.

    environment: where it was verified; captured_on: where it was captured, None where that is the same machine.
    """

    created: str
    command: str
    environment: Environment
    target: TargetRecord | None
    capture: Capture | None = None
    advice: Advice | None = None
    verification: Verification | None = None
    reason: str | None = None
    elapsed_seconds: dict[str, float] = field(default_factory=dict)
    captured_on: Environment | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def snippet(self) -> str | None:
        """The code to paste: the recommended loss scale's, or what was found to train where FP16 as it is does not."""
        plan = self.advice.plan if self.advice else None
        if self.verification is None or self.verification.train_with == "fp16":
            return (plan and plan.snippet) or (self.advice.loss_scale.snippet if self.advice else None)
        if self.verification.train_with == "fp16-plan":
            return plan.snippet if plan else None
        return BF16_SNIPPET if self.verification.train_with == "bf16" else None
