"""Who chooses the loss scale: each policy is a torch GradScaler, so one training loop serves them all.

`Recommended` and `PaperStatic` look at the FP32 job before they start; the others start blind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from mpdiag.advice import advise
from mpdiag.capture.autocast_types import observe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import SelfTest
from mpdiag.formats import FP16
from mpdiag.settings import CAPTURE_STEPS
from mpdiag.target import Job, Start

LOG2_MAX, LOG2_MIN = 24, 0  # OpenSeq2Seq's scale_max and scale_min, at 2383d5d
PAPER_SCALES = tuple(2.0**k for k in range(15, 2, -1))  # 32K to 8
NEVER = 10**9


class Backoff(torch.amp.GradScaler):
    """OpenSeq2Seq's Backoff: halved at an overflow, doubled after 2,000 steps without, within [1, 2^24]."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device.type, init_scale=2.0**LOG2_MAX, growth_interval=2000)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        super().update(new_scale)
        scale = self.get_scale()
        within = min(max(scale, 2.0**LOG2_MIN), 2.0**LOG2_MAX)
        if within != scale:
            super().update(within)


class Static(torch.amp.GradScaler):
    """One scale for ever; a step whose gradients overflow is skipped."""

    def __init__(self, device: torch.device, scale: float) -> None:
        super().__init__(device.type, init_scale=scale)
        self._fixed = scale

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        super().update(self._fixed)


class LogMax(torch.amp.GradScaler):
    """OpenSeq2Seq's LogMax: log2 of the weight gradients' maximum is taken as normal; 99.9 % of it fits.

    Mended: a step that overflowed counts as log2 = 16, where the original feeds 2^16 into the averages; a step whose
    gradients are all zero counts as FP16's smallest number, where the original takes log2 of zero.
    """

    FAST, SLOW, DEVIATIONS, CEILING, FLOOR = 0.99, 0.999, 3.09, 16.0, -24.0

    def __init__(self, device: torch.device) -> None:
        super().__init__(device.type, init_scale=1.0)
        self._largest: list[torch.Tensor] = []
        self._steps = 0
        self._mean = self._slow_mean = self._slow_square = 0.0

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        self.unscale_(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._largest.append(torch.stack(torch._foreach_norm(gradients, math.inf)).max())
        return super().step(optimizer, *args, **kwargs)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        largest = float(torch.stack(self._largest).max())
        self._largest.clear()
        if largest == 0:
            self._see(self.FLOOR - math.log2(self.get_scale()))
        else:
            self._see(math.log2(largest) if math.isfinite(largest) else self.CEILING)
        super().update(self._scale_now())

    def _see(self, x: float) -> None:
        self._steps += 1
        self._mean = self.FAST * self._mean + (1 - self.FAST) * x
        self._slow_mean = self.SLOW * self._slow_mean + (1 - self.SLOW) * x
        self._slow_square = self.SLOW * self._slow_square + (1 - self.SLOW) * x * x

    def _scale_now(self) -> float:
        fast, slow = 1 - self.FAST**self._steps, 1 - self.SLOW**self._steps
        variance = self._slow_square / slow - (self._slow_mean / slow) ** 2
        cutoff = self._mean / fast + self.DEVIATIONS * math.sqrt(max(variance, 0.0))
        return 2.0 ** min(max(self.CEILING - cutoff, LOG2_MIN), LOG2_MAX)


@dataclass
class Subject:
    """What a policy may look at before the FP16 run. first_gradient: largest weight gradient of the first FP32 step."""

    job: Job
    start: Start
    device: torch.device
    first_gradient: float
    notes: dict[str, object] = field(default_factory=dict)


Policy = Callable[[Subject], torch.amp.GradScaler | None]


def default(subject: Subject) -> torch.amp.GradScaler:
    """torch's GradScaler as it comes: 2^16, doubled after 2,000 clean steps."""
    return torch.amp.GradScaler(subject.device.type)


def mpdiag(subject: Subject) -> torch.amp.GradScaler | None:
    """The advice of a scan: the first 20 steps in FP32, observed."""
    observation = Observation(subject.device, subject.start.seed, SelfTest(None, 0, reason="not this benchmark's"))
    observation.types = observe(subject.job, subject.start, subject.device)
    observe_training(subject.job, subject.start, observation, [range(CAPTURE_STEPS)])
    advice = advise(observation.record()).loss_scale
    subject.notes = {
        "mode": advice.mode,
        "window_log2": [advice.lower_log2, advice.upper_log2],
        "limited_by": {end: list(names) for end, names in advice.limited_by.items()},
        "growth_interval": advice.growth_interval,
        "reason": advice.reason,
    }
    log2 = advice.log2_scale if advice.log2_scale is not None else advice.upper_log2  # as the verification starts
    if log2 is None or (advice.mode == "none" and advice.log2_scale == 0):
        return None
    interval = NEVER if advice.mode == "static" else advice.growth_interval or 2000
    return torch.amp.GradScaler(subject.device.type, init_scale=2.0**log2, growth_interval=interval)


def logmax(subject: Subject) -> torch.amp.GradScaler:
    """LogMax, mended; starts at 1."""
    return LogMax(subject.device)


def backoff(subject: Subject) -> torch.amp.GradScaler:
    """Backoff; starts at 2^24."""
    return Backoff(subject.device)


def paper(subject: Subject) -> torch.amp.GradScaler:
    """The paper's static rule: of 8 to 32K the largest S with S * max|weight gradient| < 65504; 1 if none is."""
    fits = (scale for scale in PAPER_SCALES if scale * subject.first_gradient < FP16.max)
    return Static(subject.device, next(fits, 1.0))


POLICIES: dict[str, Policy] = {make.__name__: make for make in (default, mpdiag, logmax, backoff, paper)}
