"""How far the first gradients of an arm are from FP32's, beside what another batch changes anyway.

A check of seconds that finds broken layers before any training; it claims nothing about accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from mpdiag.accuracy import GradientCheck, GradientError
from mpdiag.arm_names import BASELINE, BF16, FP16, FP16_PLAN, FP16_UNSCALED
from mpdiag.device.random_state import random_state_kept
from mpdiag.errors import MpdiagError
from mpdiag.target import Job, Start
from mpdiag.target.job import seed_everything
from mpdiag.training.islands import fp32_islands, lift_islands
from mpdiag.training.precision import FP32_IEEE, Precision, in_force
from mpdiag.training.session import Session, build_session, total
from mpdiag.verify.arms import Arm, tf32_arm
from mpdiag.verify.deadline import short
from mpdiag.verify.plan import Pace

BATCHES = 4  # their scatter is known to about 40 %: 1 / sqrt(2 (n - 1)) of a standard deviation
LEAST_BATCHES = 2  # one tells nothing of what another changes
SEED = 20180221  # of what the loss draws, the same in every precision
LEAST_SHARE = 1e-6  # of the squared norm, to be named the worst: a bias before a norm has nothing but rounding
SAME = 1e-3  # of FP32's gradient: beyond it FP32 does not repeat itself, and no error of an arm is its own
NOTICED = 1e-4  # of FP32's gradient: sums in another order change less, and now and then by luck nothing
APART = 10.0  # times FP32 against itself: then other random numbers changed the gradient, not the order of some sums
NOT_FINITE = "FP32's own gradient is not finite"
DIFFERS = "FP32's own gradient is another one when it is computed again from the same weights, batch and random numbers"
RANDOM = "the loss draws random numbers outside nn.Dropout, and each precision draws them in another order"

Gradient = dict[str, torch.Tensor]


def arms_to_check(arms: Sequence[Arm], device: torch.device) -> list[Arm]:
    """The 16-bit arms that keep FP32 weights, and on a GPU that has it TF32 to compare them with."""
    tf32 = tf32_arm(device)[0] if device.type == "cuda" else None
    return [*([tf32] if tf32 else []), *(arm for arm in arms if arm.name in (FP16, FP16_PLAN, FP16_UNSCALED, BF16))]


def affordable(arms: Sequence[Arm], pace: Pace, seconds: float) -> tuple[int, str]:
    """(how many batches fit, why there are none). A pass takes less than a step, whose optimizer it leaves out."""
    each = pace.step_seconds[BASELINE] + sum(pace.of(arm.name, arm.precision) for arm in arms)
    once = pace.build_seconds + pace.first_step_seconds + 3 * pace.step_seconds[BASELINE]
    count = min(BATCHES, int((seconds - once) / each)) if each else BATCHES
    if count >= LEAST_BATCHES:
        return count, ""
    needs = once + LEAST_BATCHES * each
    return 0, f"not measured: it takes about {short(needs)}, the time budget has {short(seconds)} for it"


def check_gradients(
    job: Job, start: Start, arms: Sequence[Arm], device: torch.device, batches: int = BATCHES
) -> GradientCheck:
    """The gradients of each arm on the same weights and batches as IEEE FP32's; no optimizer steps.

    Dropout is off, since each precision would draw other masks; buffers are those of the start in every pass. What an
    arm's code raises is its reason; so is what leaves nothing to compare with. Raises MpdiagError where FP32 fails.
    """
    count = min(batches, len(start.batches))
    with random_state_kept(), ExitStack() as stack:
        with in_force(FP32_IEEE, device) as region:
            session = stack.enter_context(build_session(job, start, FP32_IEEE, device, region))
        passes = stack.enter_context(_passes(session))
        drawn, repeat_error = passes.repeated(start.batch(0))
        reason = NOT_FINITE if repeat_error is None else DIFFERS if repeat_error > SAME else RANDOM if drawn else None
        if reason is not None:
            return GradientCheck(count, (), reason, repeat_error)
        found = {arm.name: _Sums() for arm in arms}
        noise = _Noise()
        for index in range(count):
            loss, exact = passes.run(FP32_IEEE, start.batch(index))
            if not _finite_all(exact):
                return GradientCheck(count, (), NOT_FINITE, repeat_error)
            noise.add(exact)
            for arm in arms:
                found[arm.name].add(passes, arm.precision, start.batch(index), loss, exact)
    errors = tuple(found[arm.name].told(arm, count, noise.deviation()) for arm in arms)
    return GradientCheck(count, errors, repeat_error=repeat_error)


@contextmanager
def _passes(session: Session) -> Iterator[_Passes]:
    """A session's model with dropout off; all is put back, for the job may build one and the same object again."""
    buffers = {module: dict(module._buffers) for module in session.model.modules()}
    with ExitStack() as undo:
        for module, own in buffers.items():
            undo.callback(module._buffers.update, own)
            undo.callback(module._buffers.clear)
            if isinstance(module, nn.modules.dropout._DropoutNd):
                undo.callback(module.train, module.training)
                module.eval()
            elif isinstance(module, nn.MultiheadAttention | nn.RNNBase):
                undo.callback(setattr, module, "dropout", module.dropout)
                module.dropout = 0.0  # drawn inside their kernels
        yield _Passes(session, buffers)


class _Passes:
    """One model, taken through forward and backward in one precision after the other.

    buffers: every module's as they were, of which each pass has copies.
    """

    def __init__(self, session: Session, buffers: dict[nn.Module, dict[str, torch.Tensor | None]]) -> None:
        self._session, self._buffers = session, buffers

    def run(self, precision: Precision, batch: object, seed: int = SEED) -> tuple[float, Gradient]:
        """(loss, gradients by the parameters' names, unscaled), all parts of an iteration added up."""
        model, device = self._session.model, self._session.device
        for module, buffers in self._buffers.items():  # put in anew: a pass may make others, of another shape
            module._buffers.clear()
            module._buffers.update({n: None if b is None else b.clone() for n, b in buffers.items()})
        seed_everything(seed)
        islands = fp32_islands(model, precision.keep_fp32)
        try:
            with in_force(precision, device) as region:
                session = Session(self._session.job, model, {}, precision, device, region)
                loss = total(session.gradients(session.place(batch)))
        finally:
            lift_islands(islands)
        gradients = {n: p.grad.detach().to_dense() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        if precision.log2_scale is not None:
            for gradient in gradients.values():
                gradient.mul_(2.0**-precision.log2_scale)
        return loss, gradients

    def repeated(self, batch: object) -> tuple[bool, float | None]:
        """(whether other random numbers give another gradient, though dropout is off; FP32's error against itself).

        The error is None where FP32's gradient is not finite.
        """
        _, one = self.run(FP32_IEEE, batch)
        if not _finite_all(one):
            return False, None
        size = _distance(one, {})
        own, other = (_distance(one, self.run(FP32_IEEE, batch, seed)[1]) for seed in (SEED, SEED + 1))
        return other > max(APART * own, NOTICED * size), own / size if size else 0.0


def _finite_all(gradient: Gradient) -> bool:
    return all(bool(value.isfinite().all()) for value in gradient.values())


def _square(tensor: torch.Tensor) -> float:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return float(torch.linalg.vector_norm(real, dtype=torch.float64)) ** 2


def _distance(one: Gradient, other: Gradient) -> float:
    """Of two gradients, each taken for zero where it has no such parameter."""
    names = {*one, *other}
    return math.sqrt(sum(_square(_difference(one, other, name)) for name in names))


def _difference(one: Gradient, other: Gradient, name: str) -> torch.Tensor:
    if name not in one or name not in other:
        return one[name] if name in one else other[name]
    return one[name] - other[name]


@dataclass
class _Noise:
    """How FP32's gradients scatter from batch to batch."""

    count: int = 0
    squares: float = 0.0
    summed: Gradient = field(default_factory=dict)

    def add(self, gradient: Gradient) -> None:
        self.count += 1
        for name, value in gradient.items():
            self.squares += _square(value)
            self.summed[name] = self.summed[name] + value if name in self.summed else value

    def deviation(self) -> float | None:
        """Standard deviation from batch to batch, of the whole vector; None for one batch."""
        if self.count < 2:
            return None
        of_mean = sum(map(_square, self.summed.values())) / self.count
        return math.sqrt(max(self.squares - of_mean, 0.0) / (self.count - 1))


@dataclass
class _Sums:
    """An arm's errors, added up over the batches. errors, exact: squares by parameter."""

    reason: str | None = None
    loss_errors: list[float] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    exact: dict[str, float] = field(default_factory=dict)
    own: float = 0.0

    def add(self, passes: _Passes, precision: Precision, batch: object, exact_loss: float, exact: Gradient) -> None:
        if self.reason is not None:
            return
        try:
            loss, gradient = passes.run(precision, batch)
        except MpdiagError as error:
            self.reason = error.message
            return
        if not _finite_all(gradient):
            scale = "without a loss scale" if precision.log2_scale is None else f"at 2^{precision.log2_scale}"
            self.reason = f"the gradient is not finite {scale}"
            return
        self.loss_errors.append(abs(loss - exact_loss) / abs(exact_loss) if exact_loss else math.inf)
        for name, value in exact.items():
            mine = gradient.get(name, torch.zeros_like(value))
            self.errors[name] = self.errors.get(name, 0.0) + _square(mine - value)
            self.exact[name] = self.exact.get(name, 0.0) + _square(value)
            self.own += _square(mine)

    def told(self, arm: Arm, batches: int, deviation: float | None) -> GradientError:
        error, exact = sum(self.errors.values()), sum(self.exact.values())
        if self.reason is not None or not exact:
            reason = self.reason or "FP32's gradient is zero"
            return GradientError(arm.name, arm.precision.name, reason=reason)
        relative = {n: math.sqrt(self.errors[n] / e) for n, e in self.exact.items() if e > LEAST_SHARE * exact}
        worst = max(relative, key=lambda name: relative[name])
        return GradientError(
            arm=arm.name,
            precision=arm.precision.name,
            loss_error=_finite(math.sqrt(sum(e * e for e in self.loss_errors) / batches)),
            gradient_error=math.sqrt(error / exact),
            cosine=(self.own + exact - error) / (2 * math.sqrt(self.own * exact)) if self.own else None,
            noise_share=math.sqrt(error / batches) / deviation if deviation else None,
            worst=worst,
            worst_error=relative[worst],
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
