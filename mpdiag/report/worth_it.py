"""Whether the arm to train with is worth it, as a next step: where its steps are no faster, what is, and what it gives.

Plain text, a line each.
"""

from __future__ import annotations

from mpdiag.costs.kernels import ArmKernels
from mpdiag.costs.timed_arms import as_fast_in_tf32, compiled_step, compiled_words, tf32_words
from mpdiag.diagnosis import Verification
from mpdiag.report.cost_words import ENERGY, PEAK_MEMORY, STEP_TIME, launch_bound, lead_arm, ratio_of
from mpdiag.report.memory_line import batches_of, rates_words, sizes_words

BY_ARM = "arm"  # how a gain is known: another arm was timed with the remedy (costs/kernels.py, WhyNot)
SET_TF32 = 'torch.set_float32_matmul_precision("high")'


def what_it_is_worth(run: Verification) -> list[str]:
    """That FP16 may be used and yet is not worth it, where its steps take longer; else what makes them faster still."""
    time, compiled = ratio_of(run, STEP_TIME, "fp16"), compiled_step(run)
    if time is None or time.verdict != "worse" or time.difference is None:
        faster = [f"faster still, as timed: {compiled_words(compiled)}"] if compiled and compiled.faster else []
        return [*_also_faster(run.costs.kernels), *faster]
    first = f"{_ways(run)} come first" if launch_bound(run.costs.kernels, "fp16") else ""
    parts = [f"FP16 saves no time on this job as it is (x{time.difference:.2f})" + (f": {first}" if first else "")]
    rates = rates_words(*batches_of(run.costs.largest_batch, "fp16"))
    parts += [f"with the largest batches that fit it trains {rates}"] if rates else []
    parts += [compiled_words(compiled)] if compiled is not None and compiled.faster else []
    return ["; ".join(parts)]


def tf32_alone(run: Verification) -> list[str]:
    """That TF32 alone is as fast as the arm to train with, or may be, and what the arm gives besides; one line."""
    arm = lead_arm(run)
    found = as_fast_in_tf32(run, arm)
    if found is None:
        return []
    name = "FP16" if arm == "fp16" else arm
    besides = _besides(run, arm)
    gives = f"{name} gives besides: {', '.join(besides)}" if besides else f"nothing else was shown for {name}"
    return [f"before {name}, try {SET_TF32}: {tf32_words(found)}; {gives}"]


def _ways(run: Verification) -> str:
    """What gives a waiting GPU more at a time, but for what was timed and is no help."""
    compiled = ratio_of(run, STEP_TIME, "fp16-compile")
    tried = compiled is not None and (compiled.difference or 0.0) >= 1
    return "a larger batch or CUDA graphs" if tried else "a larger batch, torch.compile or CUDA graphs"


def _also_faster(kernels: tuple[ArmKernels, ...]) -> list[str]:
    """What makes FP16's step faster still, as an arm with it was timed."""
    found = [why for each in kernels if each.arm == "fp16" for why in each.findings]
    timed = [why for why in found if why.gain_from == BY_ARM and why.gain_ms]
    return [f"faster still by {why.gain_ms:.3g} ms a step, as timed: {why.remedy}" for why in timed]


def _besides(run: Verification, arm: str) -> list[str]:
    """What an arm gives that TF32 does not, or was not shown to: TF32 keeps FP32's storage."""
    memory, energy = (ratio_of(run, quantity, arm) for quantity in (PEAK_MEMORY, ENERGY))
    told = [f"x{memory.difference:.2f} of FP32's peak memory"] if memory and memory.verdict == "better" else []
    batches = batches_of(run.costs.largest_batch, arm)
    size, rates = sizes_words(*batches), rates_words(*batches)
    told += [size] if size else []
    told += [f"at the largest batches {rates}"] if rates else []
    if energy is not None and (energy.difference or 1.0) < 1 and energy.verdict != "worse":
        told.append(f"x{energy.difference:.2f} of IEEE FP32's energy a sample (TF32's was not measured)")
    return told
