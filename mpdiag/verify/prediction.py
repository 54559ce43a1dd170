"""Does FP16 do what the FP32 counts foretell? Both are counted in the same training step, from the same weights."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch

from mpdiag.capture.noise import mark_noise
from mpdiag.capture.probe import Probe
from mpdiag.diagnosis import TensorKind, TensorTable
from mpdiag.foretold import Prediction, TensorForecast, summarized
from mpdiag.formats import FP16
from mpdiag.target import Job, Start
from mpdiag.training.precision import FP32_IEEE, Precision, emulated
from mpdiag.training.session import open_session
from mpdiag.verify.cascade import Rounding

NOISE_SHARE = 1e-3
"""A tensor of which more than this lies below its noise floor is not compared: in FP32 those elements are rounding
errors of sums that are zero, FP16 has others. A tenth of a percentage point is what the comparison is to resolve."""

Key = tuple[TensorKind, str]
Tables = dict[Key, TensorTable]

_GRADIENTS = (TensorKind.ACTIVATION_GRADIENT, TensorKind.WEIGHT_GRADIENT)


def compare_with_fp16(
    job: Job, start: Start, device: torch.device, amp_dtypes: dict[Key, str | None], scales: tuple[int, ...], steps: int
) -> Prediction:
    """Forecast and observe one step at the initial weights and one after `steps` FP32 steps, at each log2 scale.

    amp_dtypes: the type of each tensor under FP16 autocast; only FP16 ones are compared. Emulated off CUDA.
    Raises MpdiagError where the job itself fails under FP16.
    """
    found: list[TensorForecast] = []
    halved = frozenset(name for (_, name), dtype in amp_dtypes.items() if dtype == "float16")
    for trained, begun in ((0, start), (steps, _trained(job, start, device, steps))):
        fp32 = _counted(job, begun, device, FP32_IEEE)
        for place, scale in enumerate(scales):
            fp16 = _counted(job, begun, device, Precision("FP16", torch.float16, log2_scale=scale or None))
            cascade = _counted(job, begun, device, FP32_IEEE, Rounding(halved, scale))
            for key, table in fp32.items():
                compared = table.kind in _GRADIENTS or (table.kind is TensorKind.ACTIVATION and place == 0)
                if compared and amp_dtypes.get(key) == "float16" and key in fp16 and table.histogram.finite_nonzero:
                    found.append(_forecast(table, fp16[key], cascade.get(key), trained, scale))
    return summarized(found, emulated(Precision("FP16", torch.float16), device))


def _trained(job: Job, start: Start, device: torch.device, steps: int) -> Start:
    """The start with the weights that `steps` FP32 steps make of it."""
    with open_session(job, start, FP32_IEEE, device) as run:
        for step in range(steps):
            run.step(run.place(start.batch(step)))
        weights = {name: value.detach().cpu().clone() for name, value in run.model.state_dict().items() if _kept(value)}
    return replace(start, weights=weights)


def _kept(value: object) -> bool:
    return isinstance(value, torch.Tensor)


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
    )


def _broken(table: TensorTable) -> int:
    return table.histogram.infs + table.histogram.nans
