"""MP604 to MP608: what the verification's mixed-precision runs did, beside the FP32 runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

from mpdiag.advice.checks.check import TrialCheck, island, number, owner
from mpdiag.advice.checks.fp16_runs import Fp16Check, cause, said
from mpdiag.advice.scale_window import NEGLIGIBLE_ENERGY
from mpdiag.arm_names import BASELINE, FP16_UNSCALED
from mpdiag.diagnosis import Advice, Finding, TensorKind, Trial, Verification
from mpdiag.finding import Certainty
from mpdiag.foretold import TensorForecast

_AS_FORETOLD = 0.05  # of the elements; beyond it something upstream was lost, of which the counts know no energy


def start_log2(advice: Advice) -> int | None:
    """log2 of the loss scale that FP16 runs start at: the advised one, else the window's upper end."""
    scale = advice.loss_scale
    return scale.log2_scale if scale.log2_scale is not None else scale.upper_log2


class DeadLayerGradient(TrialCheck):
    """A gradient that FP32 has is zero in FP16, at the recommended loss scale.

    Why it is bad: the layer learns nothing, and no message says so.

    Threshold: more than half of the elements that are not zero in FP32 are zero in FP16 (warning); all but a thousandth
    (error). Gradients that are mathematically zero do not count, nor those whose small elements alone are lost, with
    less of the squared norm than FP16's own rounding changes.

    Remedy: a higher loss scale where the window allows one, or the layer in FP32.

    Source: counted in the same training step in FP32 and FP16; SSD in arXiv 1710.03740, figure 3.
    """

    code: ClassVar[str] = "MP604"
    name: ClassVar[str] = "dead-layer-gradient"
    certainty: ClassVar[Certainty] = Certainty.SEEN

    def find(self, verification: Verification, advice: Advice) -> Iterator[Finding]:
        """At most one, for the tensor that loses most; the others are counted."""
        scale = start_log2(advice) or 0
        kinds = (TensorKind.WEIGHT_GRADIENT, TensorKind.ACTIVATION_GRADIENT)
        dead = [
            t
            for t in (verification.prediction.tensors if verification.prediction else ())
            if t.kind in kinds and t.comparable and t.log2_scale == scale and t.observed_underflow > 0.5
            if not _harmless(t)
        ]
        if not dead:
            return
        worst = max(dead, key=lambda t: t.observed_underflow)
        foretold = worst.predicted_underflow if worst.cascade_underflow is None else worst.cascade_underflow
        others = len({(t.name, t.kind) for t in dead}) - 1
        yield self.finding(
            "error" if worst.observed_underflow > 0.999 else "warning",
            worst.name,
            f"{worst.observed_underflow * 100:.0f} % of {worst.name}'s {worst.kind.replace('_', ' ')} is zero in FP16 "
            f"at a loss scale of 2^{scale}, after {worst.trained_steps} steps ({foretold * 100:.0f} % foretold)"
            + (f"; so is that of {others} more" if others else ""),
            "raise the loss scale if the window allows it, or keep the layer in FP32",
            {
                "observed": worst.observed_underflow,
                "predicted": foretold,
                "log2_scale": scale,
                "trained_steps": worst.trained_steps,
                "limit": 0.5,
            },
            island(owner(worst.name) if worst.kind == TensorKind.WEIGHT_GRADIENT else worst.name),
        )


def _harmless(t: TensorForecast) -> bool:
    """Whether what is zero is what the counts foretold, and that next to nothing of the squared norm."""
    as_foretold = t.observed_underflow <= t.predicted_underflow + _AS_FORETOLD
    return as_foretold and t.energy_lost is not None and t.energy_lost <= NEGLIGIBLE_ENERGY


class PredictionMissed(TrialCheck):
    """FP16 did what the FP32 counts did not foretell.

    Why it is bad: a loss scale and islands are advised from these counts. Where FP16 overflows without notice, they
    were taken from the wrong numbers: something between the modules overflows, or an operation adds up in FP16.

    Threshold: warning where a tensor overflowed in a step in which no overflow was foretold; information where one
    tensor in twenty is more than 5 percentage points off.

    Remedy: `--depth ops` looks between the modules.

    Source: counted in the same training step in FP32 and FP16.
    """

    code: ClassVar[str] = "MP605"
    name: ClassVar[str] = "prediction-missed"
    certainty: ClassVar[Certainty] = Certainty.SEEN

    def find(self, verification: Verification, advice: Advice) -> Iterator[Finding]:
        """At most one of each sort."""
        seen = verification.prediction
        if seen is None:
            return
        told = {finding.code for finding in advice.findings}
        if seen.overflow_missed and not told & {"MP102", "MP106", "MP107", "MP109", "MP110"}:
            first, _, kind = seen.overflow_missed[0].removesuffix(")").rpartition(" (")
            others = f", and so did {len(seen.overflow_missed) - 1} more" if len(seen.overflow_missed) > 1 else ""
            yield self.finding(
                "warning",
                first,
                f"{first}'s {kind.replace('_', ' ')} overflowed in FP16, which FP32's counts did not foretell{others}",
                "scan with --depth ops, which sees the operations between the modules",
                {"tensors": len(seen.overflow_missed), "limit": 0},
                "mpdiag scan model.py --depth ops\n",
            )
        if seen.p95_error_points is not None and seen.p95_error_points > 5:
            worst = max((t for t in seen.tensors if t.comparable), key=lambda t: t.error_points)
            yield self.finding(
                "info",
                worst.name,
                f"the underflow foretold is off by {worst.error_points:.1f} percentage points for {worst.name}, and by "
                f"more than {seen.p95_error_points:.1f} for one tensor in twenty",
                "trust the runs rather than the forecast on this job",
                {"error_points": worst.error_points, "p95_error_points": seen.p95_error_points, "limit": 5},
            )


class NonfiniteTraining(Fp16Check):
    """The loss is infinite or NaN in FP16, while the FP32 run of the same seed stays finite.

    Why it is bad: the job does not train in FP16. Where it happens without a loss scale too, no scale can help.

    Threshold: warning where the run recovered, its later half from there on finite, or where it is plain FP16's and
    the plan's FP32 islands mend it; else error. None where FP32 diverges too.

    Remedy: the findings of the forward pass, MP101 to MP110; an FP32 island; BF16. The module is named where the batch
    of that step, run again in FP16 and in FP32, tells it.

    Source: the runs themselves; torch.autograd.set_detect_anomaly names the operation.
    """

    code: ClassVar[str] = "MP606"
    name: ClassVar[str] = "nonfinite-training"
    certainty: ClassVar[Certainty] = Certainty.SEEN
    has_limit: ClassVar[bool] = False

    def of(self, runs: Sequence[Trial], verification: Verification, advice: Advice) -> Finding | None:
        """One for the first seed."""
        sound = {t.seed for t in verification.trials if t.arm == BASELINE and all(map(math.isfinite, t.losses))}
        broken = [t for t in runs if t.seed in sound and not all(map(math.isfinite, t.losses))]
        if not broken:
            return None
        first = broken[0]
        step = next(i for i, loss in enumerate(first.losses, 1) if not math.isfinite(loss))
        after = first.losses[step:]
        later = sum(not math.isfinite(loss) for loss in after)
        when = f"from step {step} on" if later == len(after) else f"at step {step} and {later} of {len(after)} later"
        gone = not all(map(math.isfinite, after[len(after) // 2 :] or first.losses[-1:]))
        unscaled = [t for t in verification.trials if t.arm == FP16_UNSCALED and t.seed in sound]
        hopeless = any(not all(map(math.isfinite, t.losses)) for t in unscaled)
        why, module = cause(broken)
        find_out = "find what overflows in the forward pass (scan from a checkpoint near that step: --start-from)"
        return self.finding(
            "error" if gone else "warning",
            "the loss",
            f"the loss is not finite {when} in FP16, while FP32 is (seed {first.seed})"
            + ("; so it is without a loss scale, so no scale helps" if hopeless else "")
            + (f"; {why}" if why else ""),
            (f"keep {said(module)} in FP32" if module else f"{find_out}, keep it in FP32") + ", or train in BF16",
            {"step": step, "seeds": len(broken), "also_unscaled": hopeless if unscaled else None, "module": module},
            island(module) if module else "torch.autograd.set_detect_anomaly(True)  # names the operation, slowly\n",
        )


class TrainingFails(Fp16Check):
    """A training run in FP16 raises, though the first iteration did not.

    Why it is bad: the job cannot train in mixed precision as it stands.

    Threshold: none; it raised. Where the first iteration raises already, MP303, MP304 or MP502 say so.

    Remedy: what the error says; an FP32 island around the line that it names.

    Source: the run itself; its error is the evidence.
    """

    code: ClassVar[str] = "MP607"
    name: ClassVar[str] = "training-fails"
    certainty: ClassVar[Certainty] = Certainty.SEEN
    has_limit: ClassVar[bool] = False

    def of(self, runs: Sequence[Trial], verification: Verification, advice: Advice) -> Finding | None:
        """One for the first run that failed."""
        failed = [trial for trial in runs if trial.error]
        if not failed or {finding.code for finding in advice.findings} & {"MP303", "MP304", "MP502"}:
            return None
        first = failed[0]
        return self.finding(
            "error",
            "the training",
            f"FP16 training fails after {first.steps} steps: {first.error}",
            "mend the line that the error names, or put an FP32 island around it",
            {"error": first.error, "steps": first.steps, "seeds": len(failed)},
            'with torch.autocast("cuda", enabled=False):\n    y = op(x.float())\n',
        )


class ControlsDidNotFail(TrialCheck):
    """No control arm was worse in a finite loss, so the runs do not show that the test can notice harm on this job.

    Why it is bad: it is not, and often means an easy job: even FP16 without a loss scale or master weights keeps up.
    But "equivalent" says less then: longer runs may tell what these cannot.

    Threshold: information: a control kept up, and none was worse; one that broke (not finite) shows only that breakage
    is noticed.

    Remedy: a later stage of training (`--start-from`), where gradients are smaller, or more steps (`--verify-steps`,
    with the `--time-budget` for them), until a control fails or the job's own length is reached.

    Source: assay sensitivity, the condition of any equivalence test (ICH E10, section 1.5).
    """

    code: ClassVar[str] = "MP608"
    name: ClassVar[str] = "controls-did-not-fail"
    certainty: ClassVar[Certainty] = Certainty.SEEN
    has_limit: ClassVar[bool] = False

    def find(self, verification: Verification, advice: Advice) -> Iterator[Finding]:
        """At most one."""
        controls = verification.controls
        kept_up = [c.arm for c in controls if c.failed is False]  # not those that broke, or are undecided
        if kept_up and not any(c.failed for c in controls):
            steps = max((t.steps for t in verification.trials if t.arm == BASELINE), default=0)
            yield self.finding(
                "info",
                "the verification",
                f"{' and '.join(kept_up)} did not fall behind FP32 in {number(steps)} steps, so these "
                "runs do not show that the test can fail here",
                "verify from a later stage of training, or over more steps",
                {"steps": steps, "controls": len(kept_up)},
                "mpdiag scan YOUR_FILE.py --start-from CHECKPOINT\n",
            )
