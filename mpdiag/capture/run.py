"""The observed FP32 run, from start to Capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mpdiag.capture.autocast_types import AutocastTypes
from mpdiag.capture.loop_facts import observe_loop
from mpdiag.capture.noise import mark_noise
from mpdiag.capture.probe import Probe
from mpdiag.diagnosis import Capture, SelfTest, TensorTable
from mpdiag.loop import LoopFacts
from mpdiag.target import Job, Start
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session, require_finite, total


@dataclass(frozen=True)
class Part:
    """What was seen in some steps of the training."""

    steps: list[int]
    tables: tuple[TensorTable, ...]
    losses: list[float]


@dataclass
class Observation:
    """A capture in the making; `record()` may be asked at any time, also after an interruption."""

    device: torch.device
    seed: int
    selftest: SelfTest
    types: AutocastTypes = field(default_factory=AutocastTypes)
    tables: tuple[TensorTable, ...] = ()
    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    not_seen: tuple[str, ...] = ()
    input_abs_max: float | None = None
    reason: str | None = None
    own_autocast: bool = False
    counted_by: str = "torch"
    precision: str = "FP32 (IEEE)"
    loop: LoopFacts | None = None

    def record(self) -> Capture:
        """What has been seen so far."""
        return self._record(self.tables, self.losses, self.steps)

    def records_of_parts(self) -> list[tuple[list[int], Capture]]:
        """The same for each part of the training that was observed, with its steps."""
        return [(part.steps, self._record(part.tables, part.losses, part.steps)) for part in self.parts]

    def _record(self, tables: tuple[TensorTable, ...], losses: Sequence[float], steps: Sequence[int]) -> Capture:
        return Capture(
            precision=self.precision,
            device=self.device.type,
            steps=len(losses),
            seed=self.seed,
            unchanged=self.selftest.unchanged,
            selftest=self.selftest,
            tables=mark_noise(tuple(self.types.of(table) for table in tables)),
            losses=tuple(losses),
            loss_amp_dtype=self.types.loss,
            amp_error=self.types.error,
            amp_nonfinite=self.types.nonfinite,
            amp_vanished=self.types.vanished,
            amp_fed_nonfinite=self.types.fed,
            amp_loss_finite=self.types.finite_loss,
            input_abs_max=self.input_abs_max,
            not_seen=self.not_seen,
            counted_by=self.counted_by,
            reason=self.reason,
            loop=self.loop,
            first_step=steps[0] if steps else 0,
            last_step=steps[-1] if steps else None,
        )


def observe_training(
    job: Job,
    start: Start,
    observation: Observation,
    parts: Sequence[Sequence[int]],
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> None:
    """Train FP32 iterations and count those in `parts` (see observed_parts); `observation` grows as they are seen.

    Raises MpdiagError `loss-not-finite` at the first loss that is not finite; what was counted by then is kept.
    """
    observation.loop, observation.input_abs_max = observe_loop(job, start, observation.device)
    with open_session(job, start, FP32_IEEE, observation.device) as run:
        observation.precision = _precision_of(run.model)
        probe = Probe(run.model, run.optimizers.values(), observation.device, include, exclude, blocks=True)
        try:
            step = 0
            for part in parts:
                losses: list[float] = []
                for observed in part:
                    probe.observe(False)
                    for _ in range(step, observed):
                        run.step(run.place(start.batch(step)))
                        step += 1
                    probe.observe(True)
                    losses.append(total(run.step(run.place(start.batch(step)))))
                    probe.step_done()
                    observation.losses.append(losses[-1])
                    observation.steps.append(step)
                    require_finite(losses[-1], step, job.source)
                    step += 1
                observation.parts.append(Part(list(part), probe.end_part(), losses))
        finally:
            observation.tables = probe.tables()
            observation.not_seen = probe.not_seen()
            if (inside_transforms := probe.not_counted()) is not None:
                job.note(inside_transforms)
            observation.counted_by = probe.counted_by
            observation.own_autocast = bool(run.region.own_autocast)
            probe.remove()


def _precision_of(model: torch.nn.Module) -> str:
    """FP32 (IEEE), or the types of a model whose parameters are not FP32."""
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    return "FP32 (IEEE)" if dtypes <= {"float32"} else f"{' and '.join(sorted(dtypes))} (as the model is)"
