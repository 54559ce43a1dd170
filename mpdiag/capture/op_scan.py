"""The second pass: two iterations of their own, one under FP16 autocast for the types, one in FP32 for the values.

The FP16 iteration comes first and keeps, for every row, the type of each call in turn; the FP32 iteration then counts
its calls in the same turn into a row for each type. So the type of a row is seen, not derived: torch's lists say what
autocast does with an operator, yet the type of `x * x` is whatever x came in. A composite function arrives as the
same operators in both runs, as the mode stands below autocast and above the device's kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from mpdiag.capture.op_counts import OpCounts
from mpdiag.capture.op_roles import RoleReader
from mpdiag.capture.op_types import OpTypes
from mpdiag.capture.op_values import Listener
from mpdiag.capture.op_watch import OpWatch
from mpdiag.errors import MpdiagError, safe_text
from mpdiag.operations import OpTable
from mpdiag.target import Job, Start
from mpdiag.training.precision import FP16_AUTOCAST, FP32_IEEE, Precision
from mpdiag.training.session import open_session


@dataclass(frozen=True)
class Operations:
    """What the second pass saw. tables None: nothing, and reason says why; with tables, reason is what they lack."""

    tables: tuple[OpTable, ...] | None
    reason: str | None = None


def observe_operations(
    job: Job, start: Start, device: torch.device, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
) -> Operations:
    """Every operator of one training iteration on the first batch, on models of its own.

    include and exclude are shell patterns on module names. Nothing that the job's code or torch raises ends the scan:
    it becomes the reason.
    """
    types, reason = OpTypes(), None
    try:
        _iterate(job, start, device, FP16_AUTOCAST, types)
    except Exception as error:
        reason = f"types after {types.last or 'the start'} are not known: {_words(error)}"
    counts = OpCounts(device, types, _wanted(include, exclude))
    try:
        _iterate(job, start, device, FP32_IEEE, counts)
    except Exception as error:
        return Operations(None, f"the operations could not be observed: {_words(error)}")
    return Operations(counts.tables(), reason)


def _iterate(job: Job, start: Start, device: torch.device, precision: Precision, listener: Listener) -> None:
    with open_session(job, start, precision, device) as run:
        batch = run.place(start.batch(0))
        reader = RoleReader(run.model, listener)
        watch = OpWatch(run.model, run.optimizers.values(), reader, mend=precision.autocast is not None)
        try:
            with watch:
                run.step(batch)
        finally:
            watch.remove()


def _words(error: Exception) -> str:
    return error.message if isinstance(error, MpdiagError) else f"{type(error).__name__}: {safe_text(error)}"


def _wanted(include: tuple[str, ...], exclude: tuple[str, ...]) -> Callable[[str], bool]:
    def wanted(module: str) -> bool:
        included = not include or any(fnmatchcase(module, pattern) for pattern in include)
        return included and not any(fnmatchcase(module, pattern) for pattern in exclude)

    return wanted
