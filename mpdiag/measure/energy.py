"""Energy and pipe activity of several arms, in windows that take turns: heat drifts under all of them alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from mpdiag.costs.calibration import judge_gpm
from mpdiag.costs.energy import EnergyUse
from mpdiag.costs.gpu import NEEDS_GPU, GpuSharing, states_seen
from mpdiag.costs.tensor_cores import Calibration, GpmEvidence
from mpdiag.costs.timing import Timing
from mpdiag.device.block import Block, Rest, read_block
from mpdiag.device.nvml import ENERGY_TICK_SECONDS, Nvml
from mpdiag.errors import MpdiagError, reason_of
from mpdiag.measure.sharing import look_for_others
from mpdiag.measure.steady import SteadyRun
from mpdiag.measure.turns import turns_of

SECONDS = 5.0  # a window: NVML's sensor looks at a quarter of the time only (arXiv 2312.02741), so longer is surer
ROUNDS = 3  # the fewest that give an interval
CONFIDENCE = 0.95
LEAST_ABOVE_IDLE = 0.1  # of the energy: below it, a few watts more or less at rest would be most of the difference
SAME_STEP = 0.1  # a window's steps may take this much more or less than the timed ones: noise and drift are less mostly
BATCH_UNKNOWN = "the batch size is not known"
SKIPPED = "steps were skipped in {count} of the windows; a skipped step takes less"
UNEVEN = "the batches differ, of {least} to {most} samples: a sample is counted by their mean of {mean:.4g} a step"

Ready = Callable[[str], AbstractContextManager[SteadyRun]]
Report = Callable[[str], None]


@dataclass(frozen=True)
class ArmWindow:
    """One window of one arm. skipped: the GradScaler skipped a step in it."""

    block: Block
    skipped: bool


@dataclass(frozen=True)
class ArmWindows:
    """The windows of several arms. samples: of a step, the mean over the batches that take turns. failures: what an
    arm's code raised; needs: why there are none at all. uneven: of every arm whose batches differ, how.
    """

    arms: dict[str, list[ArmWindow]]
    samples: dict[str, int | float | None]
    sharing: GpuSharing
    failures: dict[str, str]
    needs: str | None = None
    uneven: dict[str, str] = field(default_factory=dict)


def windows_of_arms(
    names: Sequence[str],
    ready: Ready,
    device: torch.device,
    seconds_per_window: float = SECONDS,
    rounds: int = ROUNDS,
    report: Report = lambda line: None,
) -> ArmWindows:
    """The GPU at rest first, then `rounds` windows of every arm in balanced order. `ready` gives an arm, warm.

    An arm whose code raises has no more windows. On a CPU nothing runs.
    """
    found: dict[str, list[ArmWindow]] = {name: [] for name in names}
    samples: dict[str, int | float | None] = dict.fromkeys(names)
    failures: dict[str, str] = {}
    uneven: dict[str, str] = {}
    sharing, rest = look_for_others(device)
    if rest is None:
        return ArmWindows(found, samples, sharing, failures, NEEDS_GPU)
    nvml = Nvml(device)
    for index, turns in enumerate(turns_of(names, rounds)):
        for name in turns:
            if name in failures:
                continue
            report(f"read the energy of {name}, round {index + 1} of {rounds}")
            try:
                with ready(name) as run, run.in_force_again() as step:
                    samples[name], sizes = run.samples, run.batch_sizes
                    if len(set(sizes)) > 1:
                        uneven[name] = UNEVEN.format(least=min(sizes), most=max(sizes), mean=statistics.fmean(sizes))
                    with run.skips_watched() as skipped:
                        block = read_block(nvml, step, seconds_per_window, device, _tick(rest))
                        found[name].append(ArmWindow(block, skipped()))
            except (MpdiagError, RuntimeError) as error:  # a device tells of a failed step when it is waited for
                failures[name] = reason_of(error)
    return ArmWindows(found, samples, sharing, failures, uneven=uneven)


def _tick(rest: Rest) -> float | None:
    """How often the energy counter moves; where the rest was too short to tell, what other GPUs do."""
    if rest.tick_seconds is None and rest.reading.reasons.get("energy", "").endswith("does not move"):
        return None
    return rest.tick_seconds or ENERGY_TICK_SECONDS


def energy_from(windows: ArmWindows, timing: Timing | None = None) -> tuple[EnergyUse, ...]:
    """The record of every arm's windows; with the timing of the same arms a note where their steps took another time.

    Joules a sample are of the loop in the windows: where it ran slower than the timed one, by a profiler still attached
    or a busy host, an idle GPU's watts are counted for longer.
    """
    timed = {each.arm: each.step_time_ms for each in (timing.arms if timing is not None else ())}
    return tuple(_energy(name, windows, timed.get(name)) for name in windows.arms)


def gpm_from(windows: ArmWindows, calibration: Calibration) -> tuple[GpmEvidence, ...]:
    """The evidence of every arm's windows, the shares weighted by the windows' seconds."""
    found = []
    for name, blocks in windows.arms.items():
        reading, seconds = _shares([window.block for window in blocks])
        reason = _not_alone(name, windows)
        if reason is None and reading is None:
            said = (window.block.reading.reasons.get("tensor_core") for window in blocks)
            reason = next(filter(None, said), "GPM gave no value")
        found.append(judge_gpm(name, reading, seconds, calibration, reason))
    return tuple(found)


def _shares(blocks: list[Block]) -> tuple[dict[str, float] | None, float]:
    readings = [(block.reading.gpm, block.reading.seconds) for block in blocks if block.reading.gpm]
    seconds = sum(length for _, length in readings)
    if not readings:
        return None, sum(block.reading.seconds for block in blocks)
    names = set.intersection(*(set(gpm) for gpm, _ in readings if gpm))
    return {
        name: sum(gpm[name] * length for gpm, length in readings if gpm) / seconds for name in sorted(names)
    }, seconds


def _not_alone(name: str, windows: ArmWindows) -> str | None:
    """Why the windows are none of this arm's, or not of it alone."""
    if windows.needs is not None:
        return windows.needs
    if name in windows.failures:
        return windows.failures[name]
    if windows.sharing.busy:
        return windows.sharing.reason
    others = max((window.block.reading.others or 0 for window in windows.arms[name]), default=0)
    return f"{others} other process{'' if others == 1 else 'es'} used this GPU meanwhile" if others else None


def _energy(name: str, windows: ArmWindows, timed_ms: float | None) -> EnergyUse:
    blocks = [window.block for window in windows.arms[name]]
    seconds = sum(block.reading.seconds for block in blocks)
    idle = windows.sharing.idle_watts
    batch = windows.samples[name]
    reason = _not_alone(name, windows)
    measured = [block for block in blocks if block.reading.energy_joules is not None]
    if reason is None and not measured:
        reason = next(filter(None, (block.reading.reasons.get("energy") for block in blocks)), "no window was read")
    if reason is None and not batch:
        reason = BATCH_UNKNOWN
    if reason is not None or not batch:
        return EnergyUse(name, None, None, None, len(blocks), seconds, idle, reason, above_idle_reason=reason)
    joules = sum(block.reading.energy_joules or 0.0 for block in measured)
    by_window = tuple(None if (j := b.reading.energy_joules) is None else j / (b.steps * batch) for b in blocks)
    each = [value for value in by_window if value is not None]
    seconds = sum(block.reading.seconds for block in measured)
    steps = sum(block.steps for block in measured)
    step_ms = 1e3 * sum(block.device_seconds for block in measured) / steps
    resting = None if idle is None else min(1.0, idle * seconds / joules)
    mean = statistics.fmean(each)
    untold = _why_not_above_idle(len(measured), idle, resting)
    gpu = states_seen([state for block in measured for state in block.reading.states])
    skipped = sum(window.skipped for window in windows.arms[name])
    passed = SKIPPED.format(count=skipped) if skipped else None
    notes = (windows.uneven.get(name), passed, _another_step(step_ms, timed_ms))
    return EnergyUse(
        arm=name,
        joules_per_sample=mean,
        interval=interval_of_mean(each),
        joules_per_sample_above_idle=None if untold is not None or resting is None else mean * (1 - resting),
        windows=len(measured),
        seconds=seconds,
        idle_watts=idle,
        idle_share=resting,
        watts=joules / seconds,
        samples=round(steps * batch),
        by_window=by_window,
        clocks_mhz=gpu.clocks_mhz,
        temperatures_c=gpu.temperatures_c,
        throttled=gpu.throttled,
        limited_by=gpu.limited_by,
        note="; ".join(filter(None, notes)) or None,
        above_idle_reason=untold,
        step_time_ms=step_ms,
    )


def _another_step(step_ms: float, timed_ms: float | None) -> str | None:
    """That the loop in the windows was not the timed one; None where it was, or nothing was timed."""
    if timed_ms is None or abs(step_ms / timed_ms - 1) <= SAME_STEP:
        return None
    times = f"x{step_ms / timed_ms:.2f} the {timed_ms:.4g} ms it was timed at"
    return f"a step took {step_ms:.4g} ms in these windows, {times}"


def _why_not_above_idle(windows: int, idle_watts: float | None, resting: float | None) -> str | None:
    """Why the energy above idle is not told: it is a difference from one reading of the idle GPU."""
    if idle_watts is None or resting is None:
        return "what the GPU draws at rest was not measured"
    if windows < ROUNDS:
        count = f"{windows} window{'' if windows == 1 else 's'}"
        return f"{count} an arm: its error is not known, it takes {ROUNDS}"
    if 1 - resting < LEAST_ABOVE_IDLE:
        return (
            f"only {1 - resting:.1%} of the energy is above the {idle_watts:.0f} W at rest, which was read once and is "
            "not as exact"
        )
    return None


def interval_of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean by Student's t, from three values on; None for fewer."""
    if len(values) < 3:
        return None
    from scipy.stats import t  # half a second to import, so only where it is used

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half
