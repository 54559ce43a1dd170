"""Every saved record; saved.py turns them into JSON and back.

Names are promises to other programs (docs/json.md). What could not be measured is None with its
reason in a field beside it: never 0, never missing. Shares are fractions 0..1; exponents and scales are log2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from html import escape

from mpdiag.accuracy import NO_GRADIENT_CHECK, ControlOutcome, CurveBand, GradientCheck
from mpdiag.accuracy import Comparison as Comparison  # `as`: a record of another file that is found here too
from mpdiag.blocks import NOT_ASKED, BlockCounts
from mpdiag.costs.record import NOT_MEASURED, Costs
from mpdiag.drift import WindowAt
from mpdiag.finding import SEVERITIES as SEVERITIES
from mpdiag.finding import Finding as Finding
from mpdiag.foretold import FirstOverflow, Prediction
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import LoopFacts, for_all_optimizers
from mpdiag.operations import NOT_OBSERVED, OpTable
from mpdiag.origin import Asked as Asked
from mpdiag.origin import Environment as Environment
from mpdiag.origin import TargetRecord as TargetRecord
from mpdiag.other_formats import BF16, FP16, FP16_ISLANDS, TF32, TF32_SNIPPET, FormatChoice, FormatForecast
from mpdiag.other_formats import BF16_SNIPPET as BF16_SNIPPET
from mpdiag.plan import IslandPlan
from mpdiag.scale import EnergyLost as EnergyLost
from mpdiag.scale import LossScaleAdvice as LossScaleAdvice
from mpdiag.scale import ScalePoint as ScalePoint

SCHEMA_VERSION = 1  # 1: the first

VERDICTS = ("go", "go-with-changes", "no-go", "inconclusive")
NOT_ASKED_FOR = "verification was not asked for"


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
    blocks: relative to the largest of their blocks, in the first step of each stretch observed; None for blocks_reason.
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
    """The observed FP32 run. operations: of the second pass; None without it, operations_reason says why.

    first_step, last_step: of training, counted from 0, that were observed; last_step None where none was noted.
    """

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
    first_step: int = 0
    last_step: int | None = None

    def of_kind(self, *kinds: TensorKind) -> tuple[TensorTable, ...]:
        """The tables of some kinds, in the order captured."""
        return tuple(t for t in self.tables if t.kind in kinds)


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
    time that the device's pipes were active. overflow: where a 16-bit run's loss first was not finite; None where it
    always was, or for a control.
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
    overflow: FirstOverflow | None = None


@dataclass(frozen=True)
class Verification:
    """The mixed-precision runs beside FP32, and what they say together.

    train_with: "fp16", "fp16-plan" (FP16 with the plan's FP32 islands) or "bf16", the precision that the verdict lets
    the job train in; None while none is shown. curves: one band an arm. controls: one outcome a control that was run.
    gradients: those of the first batches beside FP32's. strays: how far FP32, trained again after the other arms, ended
    from its first run, where that is beyond a margin; None where it is not, or where nobody looked.
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
    gradients: GradientCheck = NO_GRADIENT_CHECK
    strays: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Everything one scan found; what reports are drawn from.

    environment: where it was verified; captured_on: where it was captured, None where that is the same machine.
    created: when the scan began; verified: when `mpdiag verify` began, None where the scan itself verified, or nobody.
    reason: why it is not whole; hint: what to do about that first, None where there is nothing to mend.
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
    asked: Asked | None = None
    hint: str | None = None
    verified: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def train_in(self) -> str | None:
        """The format of the code to paste, which the page, the configurations and plan.json follow: the choice's.

        None where a verification has run and lets the job train in nothing, or where there is no advice.
        """
        run, advice = self.verification, self.advice
        if run is not None and run.train_with is None:
            return None
        if advice is not None and advice.format_choice is not None:
            return advice.format_choice.chosen
        if run is not None and run.train_with != "fp16":
            return BF16 if run.train_with == "bf16" else FP16_ISLANDS
        if advice is None:
            return None
        return FP16_ISLANDS if advice.plan and advice.plan.enough and advice.plan.keep_fp32 else FP16

    @property
    def snippet(self) -> str | None:
        """The code to paste: that of the format to train in; None where that is FP32, or nothing."""
        advice, found = self.advice, {BF16: BF16_SNIPPET, TF32: TF32_SNIPPET}
        if self.train_in == FP16_ISLANDS:
            return advice.plan.snippet if advice and advice.plan else None
        if self.train_in == FP16:
            return advice.loss_scale.snippet if advice else None
        code = found.get(self.train_in or "")
        return code and for_all_optimizers(code, self.capture.loop if self.capture else None)

    def __repr__(self) -> str:
        """One line: what was scanned and the verdict. The whole record is a megabyte for a large model."""
        run, source = self.verification, self.target.source if self.target else "no target"
        verdict = run.verdict or "none" if run else "not verified"
        told = f", train in {self.train_in}" if self.train_in else ""
        return f"<Diagnosis of {source}: {verdict}{told}>"

    def _repr_html_(self) -> str:
        """The verdict, its reason and the code to paste, for a notebook; the page is `mpdiag report --format html`."""
        run = self.verification
        reason = run.reason if run else self.reason or "not verified"
        code = f"<pre>{escape(self.snippet)}</pre>" if self.snippet else ""
        return f"<p><b>{escape(repr(self)[1:-1])}</b></p><p>{escape(reason)}</p>{code}"
