"""Step times of several arms, in blocks that take turns, so that clocks and heat drift under all of them alike.

Warm-up, short blocks in a balanced order, one figure a block, and the baseline against itself: repetition at the level
where the noise is (Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mpdiag.costs.gpu import GpuSharing, GpuState, states_seen
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.device.nvml import Nvml
from mpdiag.device.stopwatch import time_block
from mpdiag.errors import MpdiagError, reason_of
from mpdiag.measure.fleet import Fleet
from mpdiag.measure.sharing import AFTER, SHORT_REST_SECONDS, look_for_others
from mpdiag.measure.turns import turns_of
from mpdiag.training.precision import Precision

BLOCK_SECONDS = 0.25  # long against an event's half microsecond, short against the seconds in which clocks drift
MIN_BLOCK_STEPS, MAX_BLOCK_STEPS = 3, 50
MIN_ROUNDS, MAX_ROUNDS = 3, 20  # three give an interval at all; 20 give 0.7 % where blocks scatter by 1 %
GOOD_ROUNDS = 8  # shorter blocks are taken before fewer rounds than these
SETTLE_STEPS = 1  # after a change of arm: caches and the allocator's free lists are another arm's
RETRIES = 2  # of a block in which a step was skipped

CONTROL = "again"
NOT_RESIDENT = "the arms did not fit in memory together: each block began with a fresh model"
ANEW = "the arms do not fit in memory together, so each block builds its arm anew"


@dataclass
class _Blocks:
    """What one arm's blocks gave so far."""

    medians_ms: list[float | None] = field(default_factory=list)
    times_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    states: list[GpuState] = field(default_factory=list)
    skipped: int = 0
    reason: str | None = None


def arms_left_out(
    fleet: Fleet, seconds: float, most_seconds: float, left_out_first: Sequence[str]
) -> tuple[dict[str, str], str | None]:
    """(the arms not to time, each with the reason; why none is to be timed, None where the others are).

    Only for arms that are built block by block, which nobody could plan for before: of these the least needed are left
    out until the fewest rounds fit into `seconds`. What is left then, in `left_out_first` no more, may take
    `most_seconds`.
    """
    if fleet.resident:
        return {}, None
    kept, left_out = list(fleet.usable), {}
    for name in left_out_first:
        if _least_seconds(fleet, kept) <= seconds:
            break
        if name in kept[1:]:
            kept.remove(name)
            left_out[name] = (
                f"{ANEW}, this one in {fleet.ready_seconds[name]:.0f} s: left out, so that {MIN_ROUNDS} rounds of the "
                "others fit into the time budget"
            )
    needed = _least_seconds(fleet, kept)
    if needed <= max(seconds, most_seconds):
        return left_out, None
    had = f"the time budget had {max(most_seconds, 0.0):.0f} s left"
    return {}, f"{ANEW}: {MIN_ROUNDS} rounds of {' and '.join(kept)} take about {needed:.0f} s, {had}"


def time_arms(fleet: Fleet, seconds: float, left_out: Mapping[str, str] | None = None) -> Timing:
    """Time every usable arm of a fleet for about `seconds` in all; an arm that fails has its error as the reason.

    left_out: usable arms that are not to be timed, and why. On a CUDA device, what NVML says is kept: who else used it
    before and meanwhile, and each arm's clock and heat.
    """
    began = time.perf_counter()
    nvml = Nvml(fleet.device)
    sharing, _ = look_for_others(fleet.device, SHORT_REST_SECONDS)
    reasons = fleet.failures | dict(left_out or {})
    usable = [name for name in fleet.usable if name not in reasons]
    turns = [*usable, CONTROL]
    lengths = {name: _block_steps(fleet.step_seconds[name]) for name in usable}
    left = seconds - (time.perf_counter() - began)
    order = turns_of(turns, _rounds(lengths, fleet.step_seconds, usable[0], left, fleet.ready_seconds))
    found = {name: _Blocks() for name in turns}
    others: list[int] = []
    for turns_now in order:
        for turn in turns_now:
            name = usable[0] if turn == CONTROL else turn
            _one_block(fleet, name, lengths[name], found[turn], nvml)
        listed = nvml.processes()
        if listed is not None:
            others.append(len(listed))
    rounds = len(order)
    records = []
    for name, precision in fleet.arms.items():
        blocks = found.get(name) or _Blocks(reason=reasons[name])
        records.append(_record(name, precision, blocks, rounds))
    return Timing(
        arms=tuple(records),
        control=_record(CONTROL, fleet.arms[usable[0]], found[CONTROL], rounds),
        samples=fleet.samples,
        rounds=rounds,
        resident=fleet.resident,
        seconds=round(time.perf_counter() - began, 3),
        notes=() if fleet.resident else (NOT_RESIDENT,),
        batch_sizes=fleet.batch_sizes if len(set(fleet.batch_sizes)) > 1 else (),
        order=order,
        sharing=_sharing_after(fleet.device, sharing),
        others=max(others, default=None),
    )


def _sharing_after(device: torch.device, before: GpuSharing) -> GpuSharing:
    """Who else used the device: who was there and idle, or could not be listed, may have begun to work meanwhile."""
    if device.type != "cuda" or before.busy or before.processes == 0:
        return before
    try:
        after, _ = look_for_others(device, SHORT_REST_SECONDS, AFTER)
    except RuntimeError:  # the device is lost with an arm, whose reason says so; what was timed before stands
        return before
    return after if after.busy else before


def _block_steps(step_seconds: float) -> int:
    return min(MAX_BLOCK_STEPS, max(MIN_BLOCK_STEPS, math.ceil(BLOCK_SECONDS / step_seconds)))


def _rounds(
    lengths: dict[str, int],
    step_seconds: dict[str, float],
    baseline: str,
    seconds: float,
    ready_seconds: Mapping[str, float],
) -> int:
    """How many rounds fit; where few do, the blocks in `lengths` are shortened first, if it is they that take long."""

    def fit() -> int:
        return max(0, int(seconds / sum(_round_seconds(lengths, step_seconds, baseline, ready_seconds))))

    stepping, building = _round_seconds(lengths, step_seconds, baseline, ready_seconds)
    if fit() < GOOD_ROUNDS and stepping > building:
        _shorten(lengths, max(fit(), 1) / GOOD_ROUNDS)
    return min(MAX_ROUNDS, max(MIN_ROUNDS, fit()))


def _round_seconds(
    lengths: Mapping[str, int], step_seconds: Mapping[str, float], baseline: str, ready_seconds: Mapping[str, float]
) -> tuple[float, float]:
    """(seconds of stepping, seconds of building arms) in one round, in which the baseline has two blocks."""
    turns = [*lengths, baseline]
    stepping = sum((lengths[name] + SETTLE_STEPS) * step_seconds[name] for name in turns)
    return stepping, sum(ready_seconds.get(name, 0.0) for name in turns)


def _shorten(lengths: dict[str, int], share: float) -> None:
    for name, length in lengths.items():
        lengths[name] = max(MIN_BLOCK_STEPS, int(length * share))


def _least_seconds(fleet: Fleet, names: Sequence[str]) -> float:
    """What the fewest rounds of these arms take, the baseline first, with blocks as short as `_rounds` makes them."""
    lengths = {name: _block_steps(fleet.step_seconds[name]) for name in names}
    given = (fleet.step_seconds, names[0], fleet.ready_seconds)
    stepping, building = _round_seconds(lengths, *given)
    if stepping > building:
        _shorten(lengths, 1 / GOOD_ROUNDS)
    return MIN_ROUNDS * sum(_round_seconds(lengths, *given))


def _one_block(fleet: Fleet, name: str, steps: int, found: _Blocks, nvml: Nvml) -> None:
    """One block of an arm; a block with a skipped step is taken again, and lost where that keeps happening."""
    if found.reason is not None:
        found.medians_ms.append(None)
        return
    try:
        with fleet.ready(name) as run, run.in_force_again() as step:
            for _ in range(RETRIES + 1):
                for _ in range(SETTLE_STEPS):
                    step()
                with run.skips_watched() as skipped:
                    times, wall = time_block(step, steps, fleet.device)
                    if not skipped():
                        break
                found.skipped += 1
            else:
                found.medians_ms.append(None)
                return
            if nvml.unavailable is None:
                step()  # clocks fall and limits end when work does
                found.states.append(nvml.state())
    except (MpdiagError, RuntimeError) as error:  # a device tells of a failed step when it is waited for
        found.reason = reason_of(error)
        found.medians_ms.append(None)
        return
    found.medians_ms.append(statistics.median(times))
    found.times_ms += times
    found.wall_ms.append(wall)


def _record(name: str, precision: Precision, found: _Blocks, rounds: int) -> ArmTime:
    if not found.times_ms:
        lost = f"the GradScaler skipped steps in all {rounds} blocks" if found.skipped else "no block was timed"
        reason = found.reason or lost
        return ArmTime(name, precision.name, None, None, None, tuple(found.medians_ms), 0, found.skipped, reason)
    low, _, high = statistics.quantiles(found.times_ms, n=4)
    gpu = states_seen(found.states)
    return ArmTime(
        arm=name,
        precision=precision.name,
        step_time_ms=statistics.geometric_mean(ms for ms in found.medians_ms if ms is not None),
        iqr_ms=(low, high),
        wall_ms=statistics.fmean(found.wall_ms),
        block_medians_ms=tuple(found.medians_ms),
        steps=len(found.times_ms),
        skipped_blocks=found.skipped,
        reason=found.reason,
        clocks_mhz=gpu.clocks_mhz,
        temperatures_c=gpu.temperatures_c,
        throttled=gpu.throttled,
        limited_by=gpu.limited_by,
    )
