"""A search of FP32 islands once more, after FP16 was counted: where a gradient is zero in FP16 that FP32 has (MP604).

The tables of FP32 do not show this: what flushes it lies between modules, or upstream of a tensor that flushed. Each
try is one FP16 iteration from the initial weights, so only a gradient that is dead there is searched for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from mpdiag.advice.checks.trials import start_log2
from mpdiag.advice.loss_scale import Part
from mpdiag.capture.probe import Probe
from mpdiag.diagnosis import Advice, Capture, TensorKind
from mpdiag.foretold import Prediction
from mpdiag.plan import NOTHING_LEFT
from mpdiag.target import Job, Start
from mpdiag.training.precision import Precision
from mpdiag.training.session import open_session
from mpdiag.verify.island_search import plan_of_trial
from mpdiag.verify.island_trial import GRADIENTS, IslandTrial, IslandTrials, OutOfTimeError, covered, plain_fp16

DEAD = 0.999  # of the elements that FP32 has: MP604's error

Key = tuple[str, str]


def dead_gradients(prediction: Prediction | None, log2_scale: int) -> dict[Key, int]:
    """(kind, name) of the gradients that are zero in FP16 at this scale from the initial weights; their elements."""
    kinds = (TensorKind.ACTIVATION_GRADIENT, TensorKind.WEIGHT_GRADIENT)
    return {
        (t.kind, t.name): t.elements
        for t in (prediction.tensors if prediction else ())
        if t.kind in kinds and t.trained_steps == 0 and t.log2_scale == log2_scale and t.comparable
        if t.observed_underflow > DEAD
    }


def with_live_gradients(
    job: Job, start: Start, device: torch.device, capture: Capture, advice: Advice, prediction: Prediction | None,
    budget_seconds: float, report: Callable[[str], None], parts: Sequence[Part] = (),
) -> Advice:  # fmt: skip
    """The advice with a plan that keeps every gradient alive, where one is dead at the advised scale; else as it is.

    A plan that was found before is added to. Where no set is found, an earlier plan stays as it is, and without one the
    plan says why there is none.
    """
    dead = dead_gradients(prediction, start_log2(advice) or 0)
    begun = advice.plan
    if not dead or (begun is not None and not begun.enough):
        return advice
    trials = IslandTrials(job, start, device, plain_fp16(capture, advice), budget_seconds, True, report, parts)
    search = _Search(trials, dead, type(job.build(start, torch.device("cpu"))).__name__)
    try:
        search.run(begun.keep_fp32 if begun else ())
    except OutOfTimeError:
        found = search.enough is not None
        what = "it is not shown that none can be left out" if found else "a gradient stays zero"
        search.reason = f"{what}: the time budget of {budget_seconds:.3g} s ended"
    nothing_left = search.enough if search.enough is not None and trials.leaves_nothing(search.enough) else None
    if search.enough is None or nothing_left is not None:
        reason = search.reason or "a gradient stays zero with every module tried in FP32"
        reason = NOTHING_LEFT if nothing_left is not None else reason
        none = plan_of_trial(nothing_left or trials.plain, trials, False, False, reason)
        return advice if begun is not None else replace(advice, plan=none)
    plan = plan_of_trial(search.enough, trials, True, search.minimal, search.reason)
    return replace(advice, plan=plan, keep_fp32=plan.keep_fp32)


@dataclass
class _Search:
    """Adds, while a gradient is dead, the module nearest to the loss whose gradient is, its reader, or its parent."""

    trials: IslandTrials
    dead: dict[Key, int]
    root: str

    def __post_init__(self) -> None:
        self.enough: IslandTrial | None = None
        self.minimal = False
        self.reason: str | None = None

    def run(self, names: tuple[str, ...]) -> None:
        """Search until all gradients are alive, then leave each module out again that is not needed."""
        begun = names
        trial, dead = self._tried(names) if names else (self.trials.plain, set(self.dead))
        while trial is None or dead:
            name = self._next(names, dead)
            if name is None:
                return
            names = (*(n for n in names if not covered(n, (name,))), name)
            trial, dead = self._tried(names)
        self.enough = trial
        for name in [n for n in reversed(names) if n not in begun]:
            fewer = tuple(n for n in self.enough.names if n != name)
            if fewer:
                trial, dead = self._tried(fewer)
                self.enough = trial if trial is not None and not dead else self.enough
        self.minimal = not begun

    def _tried(self, names: tuple[str, ...]) -> tuple[IslandTrial | None, set[Key]]:
        """An iteration with these islands, None where FP16 itself fails in it, and the gradients still dead in it."""
        trial = self.trials.run(names)
        if not trial.forward_works or trial.errors(GRADIENTS) or trial.types.finite_gradients is not True:
            return None, set(self.dead)
        precision = Precision("FP16", torch.float16, log2_scale=trial.log2_scale, keep_fp32=names)
        return trial, self._dead(precision)

    def _dead(self, precision: Precision) -> set[Key]:
        with open_session(self.trials.job, self.trials.start, precision, self.trials.device) as run:
            probe = Probe(run.model, (), self.trials.device, updates=False)
            try:
                run.step(run.place(self.trials.start.batch(0)))
                probe.step_done()
                alive = {(str(t.kind), t.name): t.histogram.finite_nonzero for t in probe.tables()}
            finally:
                probe.remove()
        return {key for key, elements in self.dead.items() if alive.get(key, 0) < (1 - DEAD) * elements}

    def _next(self, names: tuple[str, ...], dead: set[Key]) -> str | None:
        """The owner of the dead gradient that is nearest to the loss; or its reader; or the module around it."""
        called = [t.name for t in self.trials.plain.capture.of_kind(TensorKind.ACTIVATION)]
        place = {name: i for i, name in enumerate(called)}
        owners = {name if kind == TensorKind.ACTIVATION_GRADIENT else name.rpartition(".")[0] for kind, name in dead}
        for owner in sorted(owners, key=lambda name: -place.get(name, -1)):
            after = called[place[owner] + 1 :] if owner in place else []
            reader = next((n for n in after if not covered(owner, (n,)) and not covered(n, names)), None)
            around = [owner.rsplit(".", i)[0] for i in range(1, owner.count(".") + 1)]
            for name in (owner, reader, *around):
                if name and name != self.root and not covered(name, names):
                    return name
        return None
