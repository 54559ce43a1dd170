"""Every finding that can be made, one small class each, in code order; HUNDREDS says what each hundred is about.

The docstring of a class is its page in `mpdiag explain CODE`.
"""

from mpdiag.advice.checks.check import Check, Rule, RunCheck, TrialCheck
from mpdiag.advice.checks.constants import EpsUnderflow, IntegersInHalf, LogOfSoftmax, MaskConstant
from mpdiag.advice.checks.data_loading import InputBound
from mpdiag.advice.checks.evaluation import EvaluationFails
from mpdiag.advice.checks.forward_range import (
    ActivationOverflow,
    ActivationUnderflow,
    InputRange,
    NonfiniteInHalf,
    WeightOverflow,
)
from mpdiag.advice.checks.fp8 import Fp8Alignment, Fp8CastOldTorch, Fp8DelayedSpike, Fp8Underflow
from mpdiag.advice.checks.gradient_overflow import GradientOverflow
from mpdiag.advice.checks.gradients import (
    DefaultScaleOverflows,
    GradientSubnormal,
    GradientUnderflow,
    RangeConflict,
)
from mpdiag.advice.checks.loop_code import (
    BackwardInAutocast,
    CompiledBackward,
    CustomAutogradFunction,
    GradientPenalty,
    InPlaceSkipsAutocast,
    LossScaledTwice,
    RowsRepeated,
    ScalerWithBf16,
)
from mpdiag.advice.checks.operations import (
    AttentionLogitsOverflow,
    OperationOverflow,
    ReducedAccumulation,
    SquareOverflow,
    SquareUnderflow,
    SumOverflow,
)
from mpdiag.advice.checks.operators import AutocastFails, BceUnsafe, LossInHalf, MustStayFp32
from mpdiag.advice.checks.optimizer_state import (
    BetaRoundsToOne,
    EpsOfOptimizer,
    NothingTrains,
    SecondMomentUnderflow,
    UpdateStagnation,
)
from mpdiag.advice.checks.own_scaler import ClippedWhileScaled, MixedScales
from mpdiag.advice.checks.performance import (
    LatencyBound,
    LowProductShare,
    ModelStateMemory,
    TensorCoreAlignment,
    Tf32Baseline,
)
from mpdiag.advice.checks.recurrent import RecurrentInFp16
from mpdiag.advice.checks.stored_types import (
    AverageInHalf,
    BatchNormInHalf,
    CounterInHalf,
    DecayLost,
    HalfAndAutocast,
    NoMasterWeights,
)
from mpdiag.advice.checks.trial_scales import ScaleCollapse, ScaleSawtooth, SkipRate
from mpdiag.advice.checks.trials import (
    ControlsDidNotFail,
    DeadLayerGradient,
    NonfiniteTraining,
    PredictionMissed,
    TrainingFails,
)

CAPTURE_CHECKS: tuple[Check, ...] = (
    ActivationOverflow(),
    NonfiniteInHalf(),
    InputRange(),
    WeightOverflow(),
    ActivationUnderflow(),
    AttentionLogitsOverflow(),
    SquareOverflow(),
    SquareUnderflow(),
    SumOverflow(),
    OperationOverflow(),
    ReducedAccumulation(),
    GradientUnderflow(),
    DefaultScaleOverflows(),
    GradientOverflow(),
    RangeConflict(),
    UpdateStagnation(),
    GradientSubnormal(),
    MustStayFp32(),
    LossInHalf(),
    BceUnsafe(),
    AutocastFails(),
    MaskConstant(),
    EpsUnderflow(),
    LogOfSoftmax(),
    IntegersInHalf(),
    RecurrentInFp16(),
    TensorCoreAlignment(),
    NoMasterWeights(),
    HalfAndAutocast(),
    BatchNormInHalf(),
    DecayLost(),
    AverageInHalf(),
    EpsOfOptimizer(),
    SecondMomentUnderflow(),
    BetaRoundsToOne(),
    CounterInHalf(),
    CustomAutogradFunction(),
    InPlaceSkipsAutocast(),
    GradientPenalty(),
    BackwardInAutocast(),
    CompiledBackward(),
    ScalerWithBf16(),
    LossScaledTwice(),
    RowsRepeated(),
    NothingTrains(),
    ClippedWhileScaled(),
    MixedScales(),
    Fp8Underflow(),
    Fp8DelayedSpike(),
    Fp8Alignment(),
)
TRIAL_CHECKS: tuple[TrialCheck, ...] = (
    SkipRate(),
    ScaleCollapse(),
    ScaleSawtooth(),
    DeadLayerGradient(),
    PredictionMissed(),
    NonfiniteTraining(),
    TrainingFails(),
    ControlsDidNotFail(),
    EvaluationFails(),
)
RUN_CHECKS: tuple[RunCheck, ...] = (
    Tf32Baseline(),
    ModelStateMemory(),
    LowProductShare(),
    LatencyBound(),
    InputBound(),
    Fp8CastOldTorch(),
)

ALL: tuple[Rule, ...] = tuple(sorted((*CAPTURE_CHECKS, *TRIAL_CHECKS, *RUN_CHECKS), key=lambda rule: rule.code))

BY_CODE = {check.code: check for check in ALL}

HUNDREDS = {
    "MP1": "forward range",
    "MP2": "gradients and loss scale",
    "MP3": "operators",
    "MP4": "performance",
    "MP5": "training loop",
    "MP6": "verification",
    "MP7": "FP8",
}
