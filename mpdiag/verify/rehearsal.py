"""A few steps of FP32 and FP16 before the training runs, to plan them with."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from mpdiag.arm_names import BASELINE, FP16
from mpdiag.errors import MpdiagError
from mpdiag.target import Job, Start
from mpdiag.training.session import open_session, total
from mpdiag.verify.arms import Arm
from mpdiag.verify.plan import Pace

REHEARSAL_STEPS = 4  # the first is warm-up; of the others the quickest counts, for others may use the machine


def rehearse(job: Job, start: Start, arms: Sequence[Arm], device: torch.device) -> Pace:
    """The pace of the baseline and of FP16.

    An FP16 arm that fails counts as the baseline; so does a metric that fails as free. Raises MpdiagError where the
    baseline fails, or either runs out of memory.
    """
    seconds: dict[str, float] = {}
    first: list[float] = []
    build = evaluate = 0.0
    for arm in (a for a in arms if a.name in (BASELINE, FP16)):
        try:
            opened = time.perf_counter()
            with open_session(job, start, arm.precision, device) as run:
                build = max(build, time.perf_counter() - opened)
                times = []
                for step in range(REHEARSAL_STEPS):
                    began = time.perf_counter()
                    total(run.step(run.place(start.batch(step))))  # which waits for the device
                    times.append(time.perf_counter() - began)
                seconds[arm.name] = min(times[1:])
                first.append(times[0] - seconds[arm.name])
                if arm.name == BASELINE:
                    began = time.perf_counter()
                    run.evaluate()
                    evaluate = time.perf_counter() - began
        except MpdiagError as error:
            if arm.name == BASELINE or error.slug == "out-of-memory":
                raise
            seconds[arm.name] = seconds.get(BASELINE, 0.0)
    # the first of all first steps starts the device: of two, the shorter one is what every run has
    return Pace(seconds, build, max(min(first), 0.0), evaluate)
