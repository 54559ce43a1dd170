"""One FP16 iteration with some modules in FP32: is it finite, and what do the tables say with the types it gave?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from mpdiag.advice import advise
from mpdiag.advice.loss_scale import Part
from mpdiag.capture.autocast_types import AutocastTypes, observe
from mpdiag.diagnosis import Advice, Capture
from mpdiag.errors import UsageError
from mpdiag.target import Job, Start
from mpdiag.training.precision import Precision
from mpdiag.verify.products_left import ProductFlops, count_products, half_share

FORWARD = ("MP101", "MP102", "MP104", "MP106", "MP107", "MP109", "MP110")  # findings an island cures where it stands
LOSES, LOSES_ENERGY = "MP105", 0.01  # of the squared norm: a warning below, as a residual stream may hide what is lost
GRADIENTS = ("MP203", "MP204")  # and that it cures by taking a tensor out of the window


class OutOfTimeError(Exception):
    """The budget has run out."""


@dataclass(frozen=True)
class IslandTrial:
    """What showed with the named islands. broken: modules not finite in FP16 that are so in FP32, in call order."""

    names: tuple[str, ...]
    types: AutocastTypes
    capture: Capture
    advice: Advice
    broken: tuple[str, ...]

    def errors(self, codes: tuple[str, ...]) -> list[str]:
        """What the errors among these findings are about."""
        return [f.subject for f in self.advice.findings if f.code in codes and f.severity == "error"]

    @property
    def losing(self) -> list[str]:
        """The modules whose output loses too much in FP16, then those that lose what an island gives them."""
        found = [f for f in self.advice.findings if f.code == LOSES]
        lossy = [f.subject for f in found if float(f.evidence.get("energy_lost") or 0.0) > LOSES_ENERGY]
        return [*lossy, *self.types.starved]

    @property
    def forward_works(self) -> bool:
        """Whether the iteration was finite as far as its loss, and the tables show nothing that FP16 cannot hold."""
        broken = self.broken or self.types.error or self.types.finite_loss is False
        return not (broken or self.errors(FORWARD) or self.losing)

    @property
    def log2_scale(self) -> int | None:
        """The scale to try: the recommended one, or the most that the largest gradient bears; None for none."""
        scale = self.advice.loss_scale
        return (scale.log2_scale if scale.log2_scale is not None else scale.upper_log2) or None


def plain_fp16(capture: Capture, advice: Advice) -> IslandTrial:
    """The trial without islands, which the scan has run already."""
    types = AutocastTypes(
        nonfinite=capture.amp_nonfinite,
        vanished=capture.amp_vanished,
        fed=capture.amp_fed_nonfinite,
        finite_loss=capture.amp_loss_finite,
        loss=capture.loss_amp_dtype,
        error=capture.amp_error,
    )
    return IslandTrial((), types, capture, advice, _broken(capture))


@dataclass
class IslandTrials:
    """Trials within a time budget, of which the first is always run. asks_gradients: the loss scale counts too.

    parts: what was observed in each stretch of the training, where there were several; a scale has to serve them all.
    """

    job: Job
    start: Start
    device: torch.device
    plain: IslandTrial
    budget_seconds: float
    asks_gradients: bool
    report: Callable[[str], None]
    parts: Sequence[Part] = ()

    def __post_init__(self) -> None:
        self._began = time.perf_counter()
        self._slowest = 0.0
        self._scale = self.plain.log2_scale
        self._products: ProductFlops | None = None
        self.iterations = 0

    @property
    def seconds(self) -> float:
        """Seconds since the first trial was prepared."""
        return time.perf_counter() - self._began

    def run(self, names: tuple[str, ...]) -> IslandTrial:
        """One iteration with these islands; a second at another loss scale where the islands change it.

        Raises OutOfTimeError when another iteration as slow as the slowest would pass the budget.
        """
        trial = self._iterate(names)
        if self.asks_gradients and trial.forward_works and trial.log2_scale != self._scale:
            self._scale = trial.log2_scale  # the next set is likely to want the same
            trial = self._iterate(names)
        return trial

    def half_share(self, trial: IslandTrial) -> tuple[float | None, str | None]:
        """The share of the products' FLOPs that this trial's islands leave in 16 bits; (None, why) where not known."""
        if self._products is None:
            self._products = count_products(self.job, self.start, self.device, self.plain.capture)
        return half_share(self._products, trial.names, trial.capture)

    def leaves_nothing(self, trial: IslandTrial) -> bool:
        """Whether every product is known to be in FP32, so that the trial is FP32 in all but name."""
        return self.half_share(trial)[0] == 0

    def _iterate(self, names: tuple[str, ...]) -> IslandTrial:
        if self.iterations and self.seconds + self._slowest > self.budget_seconds:
            raise OutOfTimeError
        began = time.perf_counter()
        self.iterations += 1
        self.report(f"FP16 iteration {self.iterations} with {len(names)} module(s) in FP32")
        precision = Precision("FP16", torch.float16, log2_scale=self._scale, keep_fp32=names)
        try:
            types = observe(self.job, self.start, self.device, precision)
        except UsageError as refused:  # a module that cannot be an island
            types = AutocastTypes(error=refused.message)
        capture = replace(
            _with_types(self.plain.capture, types, names),
            loss_amp_dtype=types.loss,
            amp_error=types.error,
            amp_nonfinite=types.nonfinite,
            amp_vanished=types.vanished,
            amp_fed_nonfinite=types.fed,
            amp_loss_finite=types.finite_loss,
        )
        parts = [(steps, _with_types(part, types, names)) for steps, part in self.parts]
        self._slowest = max(self._slowest, time.perf_counter() - began)
        return IslandTrial(names, types, capture, advise(capture, parts), _broken(capture))


def covered(name: str, names: tuple[str, ...]) -> bool:
    """Whether a module is an island or lies inside one."""
    return any(name == island or name.startswith(f"{island}.") for island in names)


def _with_types(capture: Capture, types: AutocastTypes, names: tuple[str, ...]) -> Capture:
    """The capture with the types of this trial; operators inside islands compute in FP32."""
    operations = capture.operations
    if operations is not None:
        operations = tuple(replace(t, amp_dtype="float32") if covered(t.module, names) else t for t in operations)
    return replace(capture, tables=tuple(types.of(table) for table in capture.tables), operations=operations)


def _broken(capture: Capture) -> tuple[str, ...]:
    """The modules not finite in FP16 whose output is finite in FP32: a mask of -inf is meant."""
    meant = {t.name for t in capture.tables if t.histogram.infs or t.histogram.nans}
    return tuple(name for name in capture.amp_nonfinite if name not in meant)
