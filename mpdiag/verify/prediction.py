"""Does FP16 do what the FP32 counts foretell? Both are counted in the same training step, from the same weights."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace

import torch

from mpdiag.capture.noise import mark_noise
from mpdiag.capture.probe import Probe
from mpdiag.diagnosis import TensorKind, TensorTable
from mpdiag.errors import MpdiagError
from mpdiag.foretold import Prediction, TensorForecast, summarized
from mpdiag.formats import FP16
from mpdiag.target import Job, Start
from mpdiag.target.weights import weights_of
from mpdiag.training.precision import FP32_IEEE, Precision, emulated
from mpdiag.training.session import open_session, total
from mpdiag.verify.cascade.step import Rounding
from mpdiag.verify.deadline import Deadline, short

NOISE_SHARE = 1e-3
"""A tensor of which more than this lies below its noise floor is not compared: in FP32 those elements are rounding
errors of sums that are zero, FP16 has others. A tenth of a percentage point is what the comparison is to resolve."""

Key = tuple[TensorKind, str]
Tables = dict[Key, TensorTable]

_GRADIENTS = (TensorKind.ACTIVATION_GRADIENT, TensorKind.WEIGHT_GRADIENT)


def compare_with_fp16(
    job: Job, start: Start, device: torch.device, amp_dtypes: dict[Key, str | None], scales: tuple[int, ...],
    steps: int, deadline: Deadline | None = None,
) -> Prediction:  # fmt: skip
    """Forecast and observe one step at the initial weights and one after `steps` FP32 steps, at each log2 scale.

    amp_dtypes: the type of each tensor under FP16 autocast; only FP16 ones are compared. Emulated off CUDA.
    Where the cascade's own pass fails, the forecasts are by the counts alone, and the reason is given.
    What does not fit into the deadline is left out, and told in its `cut`.
    Raises MpdiagError where the job itself fails under FP16.
    """
    deadline = deadline or Deadline()
    passes = _Passes(job, device)
    told: list[tuple[int, int]] = []  # (steps trained, scale), of what was compared
    found: list[TensorForecast] = []
    failed: str | None = None
    halved = frozenset(name for (_, name), dtype in amp_dtypes.items() if dtype == "float16")
    for wanted in (0, steps):
        begun, trained = start, 0
        if wanted:
            reserve = passes.reserve(len(scales), deadline.left)
            if reserve is None:
                break
            begun, trained = _trained(job, start, device, steps, deadline, reserve)
        fp32 = passes.count(begun, FP32_IEEE)
        for place, scale in enumerate(scales):
            if deadline.left < 2 * passes.longest_seconds:
                break
            fp16 = passes.count(begun, Precision("FP16", torch.float16, log2_scale=scale or None))
            cascade: Tables = {}
            try:
                cascade = passes.count(begun, FP32_IEEE, Rounding(halved, scale))
            except MpdiagError as error:  # the same step has just run without roundings: the fault is the cascade's
                failed = f"the cascade could not be computed: {error.message}"
            told.append((trained, scale))
            for key, table in fp32.items():
                compared = table.kind in _GRADIENTS or (table.kind is TensorKind.ACTIVATION and place == 0)
                if compared and amp_dtypes.get(key) == "float16" and key in fp16 and table.histogram.finite_nonzero:
                    found.append(_forecast(table, fp16[key], cascade.get(key), trained, scale))
    deadline.cut += _left_out(told, scales, steps, passes.longest_seconds, deadline.seconds)
    return replace(summarized(found, emulated(Precision("FP16", torch.float16), device)), cascade_reason=failed)


class _Passes:
    """Counts a step at a time, and how long that takes."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job, self._device = job, device
        self.longest_seconds = 0.0

    def count(self, start: Start, precision: Precision, rounding: Rounding | None = None) -> Tables:
        """The tables of the first step, as `_counted` gives them."""
        began = time.perf_counter()
        try:
            return _counted(self._job, start, self._device, precision, rounding)
        finally:
            self.longest_seconds = max(self.longest_seconds, time.perf_counter() - began)

    def reserve(self, scales: int, left_seconds: float) -> float | None:
        """Seconds to keep for comparing a state, at one scale where not at all; None where there are not so many.

        A pass more is for the model that is trained before; half of one for what takes longer than foreseen.
        """
        needed = ((1.5 + 2 * count) * self.longest_seconds for count in (scales, 1))
        return next((seconds for seconds in needed if left_seconds >= seconds + self.longest_seconds), None)


def _left_out(
    compared: list[tuple[int, int]], scales: tuple[int, ...], steps: int, pass_seconds: float, seconds: float
) -> list[str]:
    """What a deadline cut, in one sentence; none where all was compared."""
    had = f"{short(seconds)} of the time budget"
    if not compared:
        return [f"counting FP16 beside FP32 takes about {short(3 * pass_seconds)}, it has {had}"]
    trained = compared[-1][0]
    words = []
    if not trained:
        words.append("only the initial weights were compared")
    elif trained < steps:
        words.append(f"the later weights are those after {trained} of {steps} FP32 steps")
    missing = [f"2^{scale}" for scale in scales if (trained, scale) not in compared]
    if missing:
        words.append(f"there without a loss scale of {', '.join(missing)}")
    return [f"{', '.join(words)}: it has {had}"] if words else []


def _trained(
    job: Job, start: Start, device: torch.device, steps: int, deadline: Deadline, reserve_seconds: float
) -> tuple[Start, int]:
    """(the start with the weights that FP32 steps make of it, how many): `steps`, or fewer to keep the reserve."""
    with open_session(job, start, FP32_IEEE, device) as run:
        done, longest = 0, 0.0
        while done < steps and (not done or deadline.left >= reserve_seconds + longest):
            began = time.perf_counter()
            total(run.step(run.place(start.batch(done))))  # which waits for the device
            longest = max(longest, time.perf_counter() - began)
            done += 1
        weights = weights_of(run.model)
    return replace(start, weights=weights), done


def _counted(
    job: Job, start: Start, device: torch.device, precision: Precision, rounding: Rounding | None = None
) -> Tables:
    """The tables of the first step, gradients as they are with the loss scale still on them."""
    with (
        open_session(job, start, precision, device) as run,
        rounding.on(run.model) if rounding is not None else nullcontext(),
    ):
        probe = Probe(run.model, (), device)
        try:
            run.step(run.place(start.batch(0)))
            probe.step_done()
            return {(table.kind, table.name): table for table in mark_noise(probe.tables())}
        finally:
            probe.remove()


def _forecast(
    fp32: TensorTable, fp16: TensorTable, cascade: TensorTable | None, trained: int, scale: int
) -> TensorForecast:
    histogram, gradient = fp32.histogram, fp32.kind in _GRADIENTS
    k = scale if gradient else 0
    elements = histogram.finite_nonzero
    usage = histogram.usage(FP16, k)

    def beyond_fp32(count: float, own: int) -> float:
        return (count - own) / elements

    flushed, overflow = None, usage.overflow
    if cascade is not None and gradient:
        lost = cascade.histogram.zeros + cascade.histogram.underflows(FP16, k)
        flushed = beyond_fp32(lost, histogram.zeros)
        # an infinity makes more of them upstream, and NaNs
        overflow = max(overflow, beyond_fp32(_broken(cascade), _broken(fp32)))
    return TensorForecast(
        name=fp32.name,
        kind=str(fp32.kind),
        trained_steps=trained,
        log2_scale=k,
        elements=elements,
        predicted_underflow=usage.underflow,
        cascade_underflow=flushed,
        observed_underflow=beyond_fp32(fp16.histogram.zeros, histogram.zeros),
        predicted_overflow=overflow,
        observed_overflow=beyond_fp32(_broken(fp16), _broken(fp32)),
        noise=fp32.noise_level or histogram.finite_nonzero - fp32.signal.finite_nonzero > NOISE_SHARE * elements,
        energy_lost=histogram.energy_lost(FP16, k),
    )


def _broken(table: TensorTable) -> int:
    return table.histogram.infs + table.histogram.nans
