"""MP406: batches that take longer to make than an FP16 step takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import RunCheck
from mpdiag.diagnosis import Diagnosis, Finding
from mpdiag.finding import Certainty

_CANDIDATES = ("fp16-plan", "fp16")


class InputBound(RunCheck):
    """A batch takes longer to come out of train_batches() than an FP16 step takes.

    Why it is bad: every step waits for its data, and a quicker step only waits longer. The step times here are of
    batches that are on the GPU already, so the job as a whole gains less than they say.

    Threshold: information: the mean time to draw a batch, the first left out, exceeds the FP16 step time measured on
    the same machine. It is a lower bound: workers that were started before have batches ready.

    Remedy: more workers, decoded data kept in memory, augmentation on the GPU.

    Source: drawn and timed here; NVIDIA's DeepLearningExamples, where SSD gains nothing over TF32 as its input is slow.
    """

    code: ClassVar[str] = "MP406"
    name: ClassVar[str] = "input-bound"
    certainty: ClassVar[Certainty] = Certainty.MEASURED

    def find(self, diagnosis: Diagnosis) -> Iterator[Finding]:
        """At most one; none where the batches were drawn on another machine than the steps were timed on."""
        run, target = diagnosis.verification, diagnosis.target
        if run is None or run.costs.timing is None or target is None or diagnosis.captured_on is not None:
            return
        times = {each.arm: each.step_time_ms for each in run.costs.timing.arms if each.step_time_ms is not None}
        if run.costs.timing.first_samples != target.samples_per_step:
            return  # the steps were timed on a part of the batch
        arm = next((name for name in _CANDIDATES if name in times), None)
        drawn = target.batch_ms
        if arm is None or drawn is None or drawn <= times[arm]:
            return
        yield self.finding(
            "info",
            "data",
            f"a batch takes at least {drawn:.3g} ms to draw, {arm}'s step {times[arm]:.3g} ms: training waits for data",
            "make batches faster: more workers, decoded data in memory, augmentation on the GPU",
            {"batch_ms": drawn, "limit": times[arm], "fp32_step_ms": times.get("fp32")},
            "DataLoader(data, num_workers=8, persistent_workers=True, pin_memory=True)\n",
        )
