"""The stages of a scan in order; one road for the command line and for Python."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpdiag.diagnosis import NOT_ASKED_FOR, Diagnosis, TargetRecord
from mpdiag.errors import InterruptedScanError, MpdiagError, UsageError, safe_text
from mpdiag.saved import from_json
from mpdiag.settings import CAPTURE_STEPS, SEEDS, SELFTEST_STEPS, TIME_BUDGET_SECONDS, VERIFY_STEPS

if TYPE_CHECKING:
    import pandas
    import torch

    from mpdiag.capture.run import Observation
    from mpdiag.target import Job, Start


@dataclass(frozen=True)
class ScanOptions:
    """What a scan may be told; the defaults and their reasons are in settings.py."""

    steps: int = CAPTURE_STEPS
    seed: int = 0
    device: str = "auto"
    verify: bool = True
    verify_steps: int = VERIFY_STEPS
    seeds: int = SEEDS
    time_budget_seconds: float = TIME_BUDGET_SECONDS
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = {
            "steps": self.steps < 1,
            "seed": not 0 <= self.seed < 2**64,  # what torch takes
            "verify_steps": self.verify_steps < 1,
            "seeds": self.seeds < 1,
            "time_budget_seconds": not 0 < self.time_budget_seconds < math.inf,
            "device": self.device not in ("auto", "cpu", "cuda"),
        }
        for name, bad in wrong.items():
            if bad:
                message = f"{name} cannot be {getattr(self, name)!r}"
                raise UsageError("bad-option", message, "counts start at 1, a budget is a finite number of seconds")


def scan(
    target: str,
    options: ScanOptions | None = None,
    *,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
    checkpoint: Callable[[Diagnosis], None] = lambda diagnosis: None,
    **changed: Any,
) -> Diagnosis:
    """Capture, advise and verify a training job: `scan("model.py", steps=50, verify=False)`.

    Keywords are those of ScanOptions. report gets one line as each stage begins. checkpoint gets the diagnosis so far
    after each stage, so that even a killed process leaves what it had. Raises MpdiagError, whose `diagnosis` holds what
    was seen until then.
    """
    from mpdiag.device.environment import describe
    from mpdiag.device.random_state import random_state_kept
    from mpdiag.device.select import select_device
    from mpdiag.target import load_job

    options = replace(options or ScanOptions(), **changed)
    device = select_device(options.device)
    draft = _Draft(
        Diagnosis(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command or f"mpdiag.scan({target!r})",
            environment=describe(device),
            target=None,
        ),
        checkpoint,
    )
    with random_state_kept(), draft.kept_on_failure():
        report(f"load {target}")
        with draft.timed("load"):
            job = load_job(target)
            start = job.start(options.seed, max(options.steps, 1))
            draft.update(target=_target_record(job, start))
        _capture(draft, job, start, options, device, report)
        _advise(draft)
        if options.verify:
            _verify(draft, job, options, device, report)
        else:
            draft.update(reason=NOT_ASKED_FOR)
    return draft.diagnosis


def load(path: str | Path) -> Diagnosis:
    """Read a saved diagnosis. Raises UsageError (`no-such-file`, `not-a-diagnosis`, `schema-version`)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("no-such-file", f"{path}: {error}", "give a JSON written by `mpdiag scan`") from None
    try:
        return from_json(text)
    except UsageError as error:
        raise UsageError(error.slug, f"{path}: {error.message}", error.hint) from None


def frame(diagnosis: Diagnosis) -> pandas.DataFrame:
    """Every tensor's counts as a pandas DataFrame, one row a tensor, the columns of the CSV."""
    import pandas  # a quarter of a second, and only who asks for a frame needs it

    from mpdiag.report.table import COLUMNS, rows

    return pandas.DataFrame(list(rows(diagnosis)), columns=list(COLUMNS))


class _Draft:
    """The diagnosis as it grows."""

    def __init__(self, diagnosis: Diagnosis, checkpoint: Callable[[Diagnosis], None]) -> None:
        self.diagnosis = diagnosis
        self._checkpoint = checkpoint
        self.finish: Callable[[], None] = lambda: None  # what the running stage still has to hand over

    def update(self, **parts: object) -> None:
        self.diagnosis = replace(self.diagnosis, **parts)  # type: ignore[arg-type] # field names, checked by tests
        self._checkpoint(self.diagnosis)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = {**self.diagnosis.elapsed_seconds, stage: round(time.perf_counter() - began, 3)}
            self.diagnosis = replace(self.diagnosis, elapsed_seconds=seconds)

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as stopped:
            error = _as_error(stopped)
            self.finish()
            self.diagnosis = replace(self.diagnosis, reason=f"{error.slug}: {error.message}")
            if self.diagnosis.target is not None:
                error.diagnosis = self.diagnosis
            if error is stopped:
                raise
            raise error from stopped


def _as_error(stopped: BaseException) -> MpdiagError:
    """What stopped a scan, in our terms; anything unforeseen is our own fault and says so."""
    if isinstance(stopped, MpdiagError):
        return stopped
    if isinstance(stopped, KeyboardInterrupt):
        return InterruptedScanError()
    return MpdiagError(
        "internal",
        f"{type(stopped).__name__} in mpdiag: {safe_text(stopped)}",
        "please report it with the traceback that MPDIAG_DEBUG=1 shows",
    )


def _capture(
    draft: _Draft, job: Job, start: Start, options: ScanOptions, device: torch.device, report: Callable[[str], None]
) -> None:
    from mpdiag.capture.autocast_types import observe
    from mpdiag.capture.run import Observation, observe_training
    from mpdiag.capture.selftest import run_selftest

    with draft.timed("selftest"):
        report("self-test: is the training bit-identical with the probe?")
        observation = Observation(device, options.seed, run_selftest(job, start, device, SELFTEST_STEPS))
    draft.finish = lambda: _hand_over_capture(draft, observation)
    with draft.timed("autocast types"):
        report("one FP16 iteration, to see which type each tensor takes")
        observation.types = observe(job, start, device)
    with draft.timed("capture"):
        report(f"capture {options.steps} FP32 steps on {device.type}")
        observe_training(job, start, observation, options.steps, options.include, options.exclude)
    draft.finish = lambda: None
    if not observation.tables:
        raise UsageError("nothing-observed", "no tensor was observed", "check --include and --exclude")
    notes = []
    if observation.own_autocast:
        notes.append("the target opens autocast regions of its own: FP32 runs kept them in FP32")
    if options.include or options.exclude:
        notes.append("loss scale and window cover only the tensors that --include and --exclude let through")
    if len(start.batches) < options.steps:
        notes.append(f"the target gives {len(start.batches)} batch(es), which were repeated")
    target = draft.diagnosis.target
    if notes and target is not None:
        draft.diagnosis = replace(draft.diagnosis, target=replace(target, notes=(*target.notes, *notes)))
    draft.update(capture=observation.record())


def _hand_over_capture(draft: _Draft, observation: Observation) -> None:
    observation.reason = "the capture ended early"
    draft.diagnosis = replace(draft.diagnosis, capture=observation.record())
    if observation.tables:
        _advise(draft)


def _advise(draft: _Draft) -> None:
    from mpdiag.advice import advise

    assert draft.diagnosis.capture is not None
    draft.update(advice=advise(draft.diagnosis.capture))


def _verify(draft: _Draft, job: Job, options: ScanOptions, device: torch.device, report: Callable[[str], None]) -> None:
    from mpdiag.verify.run import VerificationRun

    assert draft.diagnosis.advice is not None
    running = VerificationRun(job, draft.diagnosis.advice, device, job.higher_is_better)

    def interrupted() -> None:
        if running.trials:
            draft.diagnosis = replace(draft.diagnosis, verification=running.record(interrupted=True))

    draft.finish = interrupted
    with draft.timed("verify"):
        running.run(options.seed, options.verify_steps, options.seeds, options.time_budget_seconds, report)
    draft.finish = lambda: None
    draft.update(verification=running.record())


def _described(optimizer: torch.optim.Optimizer) -> str:
    rate = optimizer.param_groups[0].get("lr")
    return f"{type(optimizer).__name__}(lr={float(rate):g})" if rate is not None else type(optimizer).__name__


def _target_record(job: Job, start: Start) -> TargetRecord:
    import torch

    from mpdiag.target.batches import samples_in
    from mpdiag.target.user_code import guarded

    model = job.build(start, torch.device("cpu"))
    with guarded("building the optimizer"):
        optimizers = job.build_optimizers(model)
    return TargetRecord(
        name=job.name,
        source=job.source,
        parameters=sum(p.numel() for p in model.parameters()),
        synthetic_data=job.synthetic_data,
        optimizer=", ".join(_described(optimizer) for optimizer in optimizers.values()),
        batches=len(start.batches),
        samples_per_step=samples_in(start.batch(0)),
        metric=None if job.evaluate is None else "evaluate(model)",
        higher_is_better=job.higher_is_better,
        notes=job.notes,
    )
