"""What an arm costs over what FP32 costs: ratios with intervals, and what the machine's noise allows to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpdiag.arm_names import FP32_CONFIGURED, TF32
from mpdiag.costs.energy import EnergyUse
from mpdiag.costs.memory import MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.diagnosis import Comparison, Trial
from mpdiag.verify.block_ratio import (
    NARROW,
    geometric_mean,
    judge,
    noise_band,
    noise_of,
    paired_blocks,
    ratio_interval,
    undecided,
)

MEMORY_NOISE = 0.01  # the allocator rounds blocks to 512 bytes and to 2 MiB segments: exact to far less than this

STEP_TIME, PEAK_MEMORY, ENERGY = "step_time_ms", "peak_memory_bytes", "energy_joules_per_sample"
TENSOR_CORE = "tensor_core"
REFERENCES = (FP32_CONFIGURED, TF32)  # what users may train with today: which of them decides most of a speed-up
NO_NOISE = "FP32 against itself has too few blocks to tell the machine's noise"
NOT_A_CANDIDATE = "only FP32 and the candidates for training have a run for it"
UNITS = {STEP_TIME: "ms a step", PEAK_MEMORY: "bytes", ENERGY: "joules a sample"}


def cost_comparisons(costs: Costs, baseline: str, arms: Sequence[str]) -> list[Comparison]:
    """Every arm against the baseline in step time, peak memory and energy; what was not measured says why.

    After these, of what was timed: the baseline against itself, and the other arms against REFERENCES.
    """
    found = []
    for arm in arms:
        if arm != baseline:
            found += [each(costs, baseline, arm) for each in (compare_step_times, _memory, _energy)]
    if costs.timing is None:
        return found
    timed = [each.arm for each in costs.timing.arms if each.step_time_ms is not None]
    others = [arm for arm in timed if arm not in (baseline, *REFERENCES)]
    pairs = [(reference, arm) for reference in REFERENCES if reference in timed for arm in others]
    return [*found, *(compare_step_times(costs, *pair) for pair in ((baseline, costs.timing.control.arm), *pairs))]


def compare_step_times(costs: Costs, baseline: str, arm: str) -> Comparison:
    """Two timed arms by the blocks they took in turns; `difference` is their ratio, `reason` why nothing is told."""
    timing = costs.timing
    if timing is None:
        return _not_measured(STEP_TIME, baseline, arm, costs.timing_reason)
    times = {each.arm: each for each in (*timing.arms, timing.control)}
    mine, theirs = times.get(arm), times.get(baseline)
    if mine is None or theirs is None or mine.step_time_ms is None or theirs.step_time_ms is None:
        its_own = mine.reason if mine is not None and mine.step_time_ms is None else None
        other = f"{baseline}: {theirs.reason}" if theirs is not None and theirs.reason else "this arm was not timed"
        return _not_measured(STEP_TIME, baseline, arm, its_own or other)
    pairs = paired_blocks(mine, theirs)
    ratios = [a / b for a, b in pairs]
    interval, noise = ratio_interval(ratios), noise_band(timing)
    reason = costs.shared or _failed(timing, mine, theirs)
    verdict = "inconclusive"
    if interval is None:
        reason = reason or f"{len(ratios)} paired block(s): no interval"
    elif noise is None:
        reason = reason or NO_NOISE
    elif reason is None:
        verdict = judge(interval, noise)
        if verdict == "inconclusive":
            reason = noise_of(timing) if arm == timing.control.arm else undecided(noise)
    before, after = theirs.step_time_ms, mine.step_time_ms
    if pairs:  # of the same rounds, so that the two times and their ratio say the same
        after, before = (geometric_mean(blocks) for blocks in zip(*pairs, strict=True))
    return Comparison(
        STEP_TIME, UNITS[STEP_TIME], baseline, arm, before, after, after / before, interval, NARROW, 1, verdict,
        reason, True,
    )  # fmt: skip


def _failed(timing: Timing, *arms: ArmTime) -> str | None:
    """Why the blocks of arms, or those that tell the noise, are not to be judged: an arm raised before the last."""
    for each in (*arms, timing.control):
        if each.reason is not None:
            taken = sum(ms is not None for ms in each.block_medians_ms)
            return f"{each.arm} failed after {taken} of {timing.rounds} blocks: {each.reason}"
    return None


def _memory(costs: Costs, baseline: str, arm: str) -> Comparison:
    uses: dict[str, MemoryUse] = {use.arm: use for use in costs.memory}
    mine, theirs = uses.get(arm), uses.get(baseline)
    if mine is None or theirs is None or not mine.peak_allocated_bytes or not theirs.peak_allocated_bytes:
        reason = next((use.reason for use in (mine, theirs) if use is not None and use.reason), costs.memory_reason)
        reason = reason or NOT_A_CANDIDATE
        return _not_measured(PEAK_MEMORY, baseline, arm, reason)
    ratio = mine.peak_allocated_bytes / theirs.peak_allocated_bytes
    verdict = "equivalent" if abs(ratio - 1) <= MEMORY_NOISE else "better" if ratio < 1 else "worse"
    return Comparison(
        PEAK_MEMORY, UNITS[PEAK_MEMORY], baseline, arm, theirs.peak_allocated_bytes, mine.peak_allocated_bytes, ratio,
        None, MEMORY_NOISE, 1, verdict, "the allocator's peak in a process of its own", True,
    )  # fmt: skip


def _energy(costs: Costs, baseline: str, arm: str) -> Comparison:
    uses: dict[str, EnergyUse] = {use.arm: use for use in costs.energy}
    mine, theirs = uses.get(arm), uses.get(baseline)
    if mine is None or theirs is None or not mine.joules_per_sample or not theirs.joules_per_sample:
        reason = next((use.reason for use in (mine, theirs) if use is not None and use.reason), costs.energy_reason)
        reason = reason or NOT_A_CANDIDATE
        return _not_measured(ENERGY, baseline, arm, reason)
    pairs = [(a, b) for a, b in zip(mine.by_window, theirs.by_window, strict=False) if a and b]  # of one round each
    interval, reason = ratio_interval([a / b for a, b in pairs]), costs.shared
    if interval is None:
        windows = "one window an arm gives" if len(pairs) == 1 else f"{len(pairs)} paired windows give"
        reason = reason or f"{windows} no interval"
    verdict = judge(interval) if interval and reason is None else "inconclusive"
    if verdict == "inconclusive":
        reason = reason or undecided(0.0)
    before, after = theirs.joules_per_sample, mine.joules_per_sample
    if pairs:  # as for step times: what drifts over the rounds is in both, and so is not in the ratio
        after, before = (geometric_mean(windows) for windows in zip(*pairs, strict=True))
    return Comparison(
        ENERGY, UNITS[ENERGY], baseline, arm, before, after, after / before, interval, NARROW, 1, verdict, reason, True
    )


def _not_measured(quantity: str, baseline: str, arm: str, reason: str | None) -> Comparison:
    return Comparison(
        quantity, UNITS[quantity], baseline, arm, None, None, None, None, None, 0, "not-measured",
        reason or "not measured", True,
    )  # fmt: skip


def with_costs(trials: Sequence[Trial], costs: Costs) -> list[Trial]:
    """The trials, the first of each arm with what its arm costs; the others say that costs are measured once."""
    times = {each.arm: each for each in (costs.timing.arms if costs.timing else ())}
    memory = {each.arm: each for each in costs.memory}
    energy = {each.arm: each for each in costs.energy}
    pipes = {each.arm: each for each in costs.gpm}
    seen: set[str] = set()
    found = []
    for trial in trials:
        if trial.arm in seen:
            found.append(trial)
            continue
        seen.add(trial.arm)
        time, peak = times.get(trial.arm), memory.get(trial.arm)
        joules, pipe = energy.get(trial.arm), pipes.get(trial.arm)
        made = replace(
            trial,
            step_time_ms=time.step_time_ms if time else None,
            step_time_iqr_ms=time.iqr_ms if time else None,
            timed_steps=time.steps if time and time.steps else None,
            peak_memory_bytes=peak.peak_allocated_bytes if peak else None,
            tensor_core=pipe.gpm if pipe else None,
            energy_joules_per_sample=joules.joules_per_sample if joules else None,
        )
        reasons = {
            STEP_TIME: (time.reason if time else None) or costs.timing_reason,
            PEAK_MEMORY: (peak.reason if peak else None) or costs.memory_reason,
            ENERGY: (joules.reason if joules else None) or costs.energy_reason,
            TENSOR_CORE: (pipe.reason if pipe else None) or costs.gpm_reason,
        }
        missing = {key: why or NOT_A_CANDIDATE for key, why in reasons.items() if getattr(made, key) is None}
        kept = {key: why for key, why in trial.not_measured.items() if key not in reasons}
        found.append(replace(made, not_measured=kept | missing))
    return found
