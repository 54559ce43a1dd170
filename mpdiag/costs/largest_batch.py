"""The largest batch that trains on a card: the record, and the search as a function of the trials so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TOLERANCE = 0.03  # of the batch; a finer answer costs more trials than it tells, for sequences and fragments vary more
MULTIPLE = 8  # what tensor cores take whole (NVIDIA's guide); from two of them on, other batches are not tried
MARGIN = 0.05  # of the card: the CUDA context (0.5 GB), fragments that grow over hours, batches longer than those seen
MIN_MARGIN_BYTES = 512 * 2**20  # on a small card 5 % is less than the CUDA context alone
LONGEST_LEAP = 16  # times the largest batch that fitted: two small batches foretell no farther
ENOUGH = 2**17  # samples: nobody trains with more on one card, and a tiny model would have the search go on
NEAR_FULL = 0.85  # of the budget: there the allocator keeps less in reserve, and a line through such peaks is too flat
SURE = 4  # times the largest batch that fitted: a line foretells so far; farther on it is tried at half the way first
CAUTION = 0.95  # of what a line through small batches foretells: a trial that fits is cheaper than one that does not
BISECT_AFTER = 2  # trials that did not fit: each costs a process, and halving is sure


@dataclass(frozen=True)
class BatchTrial:
    """One batch size tried. peak_bytes: reserved by the allocator. Where it did not fit: None, and reason why."""

    batch: int
    fits: bool
    peak_bytes: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch one arm trains with: three steps with the optimizer and one pass without gradients fitted.

    batch: None with the reason where there is none. at_least: the search ended early and a larger one may fit.
    too_large: the smallest batch seen not to fit, too_large_reason what it met. card_bytes: the whole card, or the
    smaller one asked for (limited); budget_bytes: what of it torch might reserve, the margin taken off.
    fixed_bytes and bytes_per_sample: the line through the peaks that fitted. own_batch: the job's; beyond it, its
    samples are repeated. samples_per_second: at `batch`, in a fresh process, with the median step_time_ms.
    """

    arm: str
    precision: str
    batch: int | None = None
    at_least: bool = False
    too_large: int | None = None
    too_large_reason: str | None = None
    peak_bytes: int | None = None
    card_bytes: int | None = None
    budget_bytes: int | None = None
    limited: bool = False
    fixed_bytes: int | None = None
    bytes_per_sample: int | None = None
    own_batch: int | None = None
    samples_per_second: float | None = None
    step_time_ms: float | None = None
    speed_reason: str | None = None
    trials: tuple[BatchTrial, ...] = ()
    reason: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def absent(cls, arm: str, precision: str, reason: str, **known: Any) -> LargestBatch:
        """No batch found, and why."""
        return cls(arm, precision, reason=reason, speed_reason=reason, **known)


def budget_of(card_bytes: int) -> int:
    """What torch may reserve of a card: all but the margin."""
    return card_bytes - max(int(MARGIN * card_bytes), MIN_MARGIN_BYTES)


def bracket(trials: Sequence[BatchTrial]) -> tuple[int | None, int | None]:
    """(the largest batch that fitted, the smallest that did not); below the latter, should a larger one have fitted."""
    unfit = min((t.batch for t in trials if not t.fits), default=None)
    fits = [t.batch for t in trials if t.fits and (unfit is None or t.batch < unfit)]
    return max(fits, default=None), unfit


def line(trials: Sequence[BatchTrial]) -> tuple[float, float] | None:
    """(bytes fixed, bytes a sample): least squares through the peaks that fitted; None for one alone, or no rise."""
    points = [(t.batch, t.peak_bytes) for t in trials if t.fits and t.peak_bytes]
    if len({batch for batch, _ in points}) < 2:
        return None
    middle = sum(batch for batch, _ in points) / len(points)
    mean = sum(peak for _, peak in points) / len(points)
    spread = sum((batch - middle) ** 2 for batch, _ in points)
    slope = sum((batch - middle) * (peak - mean) for batch, peak in points) / spread
    return (mean - slope * middle, slope) if slope > 0 else None


def next_batch(trials: Sequence[BatchTrial], first: int, budget_bytes: int) -> int | None:
    """The batch to try next, given all trials so far; None when the answer is known to the tolerance.

    From `first` up by the line through the peaks, or down by halves; then between the largest that fitted and the
    smallest that did not. `first` aside, batches of 16 and more are multiples of 8.
    """
    if not trials:
        return first
    fit, unfit = bracket(trials)
    if fit is None:
        assert unfit is not None
        return _whole(unfit // 2) if unfit > 1 else None
    least = fit + _step(fit)
    peak = max(t.peak_bytes or 0 for t in trials if t.batch == fit)
    near_full = NEAR_FULL * budget_bytes < peak <= budget_bytes
    foretold = _filled(trials, fit, peak, budget_bytes) if near_full else _foretold(trials, budget_bytes)
    if unfit is None:
        if fit >= ENOUGH:
            return None
        if near_full and foretold is not None:
            wanted = foretold
        elif foretold is None or any(t.batch > foretold for t in trials):  # no line, or one that was wrong
            wanted = 2 * fit
        elif foretold > SURE * fit:
            wanted = min(foretold // 2, LONGEST_LEAP * fit)
        else:
            cautious = int(CAUTION * foretold)
            wanted = cautious if cautious >= least else foretold
        return min(max(_whole(wanted), _whole(least)), ENOUGH)
    if unfit <= least:
        return None
    misled = sum(not t.fits for t in trials) >= BISECT_AFTER and not near_full
    if foretold is None or foretold >= unfit or misled:
        wanted = (fit + unfit) // 2
    else:
        wanted = max(foretold, least)  # where the line says that nothing larger fits, see whether the next does
    inside = max(_whole(wanted), _whole(fit) + (MULTIPLE if fit >= 2 * MULTIPLE - 1 else 1))
    return inside if fit < inside < unfit else None


def _foretold(trials: Sequence[BatchTrial], budget_bytes: int) -> int | None:
    """Where the line through the two largest batches that fitted meets the budget: small ones bend it."""
    fitted = sorted((t for t in trials if t.fits), key=lambda t: t.batch)
    found = line(fitted[-2:])
    return None if found is None else int((budget_bytes - found[0]) / found[1])


def _filled(trials: Sequence[BatchTrial], fit: int, peak: int, budget_bytes: int) -> int:
    """Where a batch that nearly fills the budget would fill it, but for the bytes that do not grow with the batch.

    Those are told by the two smallest that fitted.
    """
    found = line(sorted((t for t in trials if t.fits), key=lambda t: t.batch)[:2])
    fixed = 0.0 if found is None else min(max(found[0], 0.0), peak - 1.0)
    return int(fit * (budget_bytes - fixed) / (peak - fixed))


def _step(batch: int) -> int:
    """How far the next batch worth a trial is from this one."""
    if batch < 2 * MULTIPLE:
        return 1
    return max(MULTIPLE, int(TOLERANCE * batch) // MULTIPLE * MULTIPLE)


def _whole(batch: int) -> int:
    return batch if batch < 2 * MULTIPLE else batch // MULTIPLE * MULTIPLE
