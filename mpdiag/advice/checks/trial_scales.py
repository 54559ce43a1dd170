"""MP601 to MP603: how the loss scale moved in the verification's runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar

from mpdiag.advice.checks.check import TrialCheck
from mpdiag.advice.checks.fp16_runs import Fp16Check, advised, cause, said
from mpdiag.diagnosis import Advice, Finding, Trial, Verification
from mpdiag.finding import Certainty

WARM_UP = 20  # steps: while a scale that starts at 2^16 comes down, skips are no sign
FEWEST_SKIPS = 3  # fewer cannot be told from a healthy run's rare ones, over the few hundred steps of a verification
COLLAPSED_LOG2 = -10  # R08; DeepSpeed and Megatron stop at 1, fairseq at 1e-4 = 2^-13.3
_SAWTOOTH = 2  # teeth: one is a scale that came down once
HALVINGS = 10  # in a row: a factor of a thousand that did not help


def moves(trial: Trial, after: int = WARM_UP) -> tuple[int, int, int]:
    """(steps, skips, growths) from a step on: a scale that falls means a skipped step."""
    scales = (trial.loss_scales_log2 or ())[after:]
    pairs = list(pairwise(scales))
    return len(pairs), sum(b < a for a, b in pairs), sum(b > a for a, b in pairs)


class SkipRate(Fp16Check):
    """Many steps are skipped, after the start.

    Why it is bad: a skipped step trains nothing, though its batch is used up and a schedule goes on. A healthy run
    skips about one step for each time the scale grows.

    Threshold: warning from 1 % of the steps after the first 20, error from 10 %; at least 3 skips more than the scale
    grew. A warning also where it is plain FP16's and the plan's FP32 islands mend it.

    Remedy: a smaller `init_scale`, a longer `growth_interval`; check the learning rate. None of these where the loss
    itself is not finite (MP606).

    Source: NVIDIA's mixed-precision guide ("skips infrequently"); loss scales as torch.amp.GradScaler moves them.
    """

    code: ClassVar[str] = "MP601"
    name: ClassVar[str] = "skip-rate"
    certainty: ClassVar[Certainty] = Certainty.SEEN

    def of(self, runs: Sequence[Trial], verification: Verification, advice: Advice) -> Finding | None:
        """One over all seeds."""
        told = [moves(trial) for trial in runs]
        steps, skips, growths = (sum(run[i] for run in told) for i in range(3))
        if not steps or skips - growths < FEWEST_SKIPS or skips / steps <= 0.01:
            return None
        lower = max((advice.loss_scale.log2_scale or 0) - 2, advice.loss_scale.lower_log2 or 0)
        remedy = f"start lower (2^{lower}), let the scale grow more rarely, check the learning rate"
        if not all(math.isfinite(loss) for trial in runs for loss in trial.losses):
            remedy = "no start of the scale helps while the loss itself is not finite: see MP606"
        return self.finding(
            "error" if skips / steps > 0.1 else "warning",
            "GradScaler",
            f"{skips} of {steps} steps after the first {WARM_UP} of each seed were skipped, and the scale grew "
            f"{growths} times",
            remedy,
            {"skipped": skips, "steps": steps, "share": skips / steps, "limit": 0.01},
            f"torch.amp.GradScaler(init_scale=2.0**{lower}, growth_interval=10_000)\n",
        )


class ScaleCollapse(Fp16Check):
    """The loss scale falls and falls.

    Why it is bad: GradScaler has no lower stop. Halving does not help against an infinity that arises in the forward
    pass, or a NaN; in the end the scale is zero and nothing trains.

    Threshold: warning where the scale ends below 1; error at 2^-10 or less, or after 10 halvings in a row beyond the
    start. A run that starts below 1, as large gradients want it, is measured from its start instead of 1. A warning
    also where it is plain FP16's and the plan's FP32 islands mend it.

    Remedy: look for the infinity in the forward pass (MP101, MP102, `--depth ops`); BF16; stop a run whose scale is
    below that.

    Source: torch.amp.GradScaler; fairseq stops at 1e-4, DeepSpeed at 1.
    """

    code: ClassVar[str] = "MP602"
    name: ClassVar[str] = "scale-collapse"
    certainty: ClassVar[Certainty] = Certainty.SEEN

    def of(self, runs: Sequence[Trial], verification: Verification, advice: Advice) -> Finding | None:
        """One for the seed whose scale fell most."""
        scaled = [trial for trial in runs if trial.loss_scales_log2]
        if not scaled:
            return None
        worst = min(scaled, key=lambda trial: _final(trial) - _floor(trial))
        final, floor = _final(worst), _floor(worst)
        halvings = max(map(_halvings, scaled))
        gone = final <= floor + COLLAPSED_LOG2 or halvings >= HALVINGS
        if not gone and final >= floor:
            return None
        lowest = f"2.0**{floor:g}" if floor else "1"
        row = f", after {halvings} halvings in a row" if halvings > 1 else ""
        why, module = cause(scaled)
        first = f"keep {said(module)} in FP32" if module else "find what is infinite in the forward pass"
        return self.finding(
            "error" if gone else "warning",
            "GradScaler",
            f"the loss scale ends at 2^{final:g} with seed {worst.seed}{row}: smaller gradients do not help"
            + (f"; {why}" if module else ""),
            f"{first}, or train in BF16",
            {"final_log2_scale": final, "halvings": halvings, "limit": floor},
            f"if scaler.get_scale() < {lowest}:\n    raise RuntimeError('the loss scale collapsed')\n",
        )


def _final(trial: Trial) -> float:
    return (trial.loss_scales_log2 or (0.0,))[-1]


def _floor(trial: Trial) -> float:
    """log2 of the scale that a healthy run does not fall below: 1, or where it started if that is less."""
    return min(0.0, (trial.loss_scales_log2 or (0.0,))[0])


def _halvings(trial: Trial) -> int:
    """The longest row of halvings, without one that ends within the warm-up and at the floor or more."""
    scales, floor = trial.loss_scales_log2 or (), _floor(trial)
    longest = row = 0
    for step in range(1, len(scales)):
        row = row + 1 if scales[step] < scales[step - 1] else 0
        if step >= WARM_UP or scales[step] < floor:
            longest = max(longest, row)
    return longest


class ScaleSawtooth(TrialCheck):
    """The loss scale grows and is halved again, at regular intervals.

    Why it is bad: it is not. The scale tries its upper limit once a growth interval and comes back: its equilibrium.

    Threshold: information: two or more growths after the first 20 steps, and no more skips than one for each.

    Remedy: none; a longer `growth_interval` saves the skipped step.

    Source: NVIDIA/apex#864.
    """

    code: ClassVar[str] = "MP603"
    name: ClassVar[str] = "scale-sawtooth"
    certainty: ClassVar[Certainty] = Certainty.SEEN

    def find(self, verification: Verification, advice: Advice) -> Iterator[Finding]:
        """At most one."""
        runs = [moves(trial) for trial in advised(verification)]
        skips, growths = (sum(run[i] for run in runs) for i in (1, 2))
        if _SAWTOOTH <= skips <= growths:
            yield self.finding(
                "info",
                "GradScaler",
                f"the scale grew {growths} times and was halved {skips} times: it tries its limit, which is healthy",
                "nothing; a longer growth_interval skips fewer steps",
                {"growths": growths, "skipped": skips, "limit": _SAWTOOTH},
                "torch.amp.GradScaler(growth_interval=10_000)\n",
            )
