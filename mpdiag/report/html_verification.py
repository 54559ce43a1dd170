"""What the verification's tables are made of: the figures of a trial and of a comparison, in words."""

from __future__ import annotations

from markupsafe import Markup

from mpdiag.diagnosis import Comparison, Trial, Verification
from mpdiag.report.html_numbers import joules, power, ratio, share, signed, size, value, with_unit

COSTS = {
    "peak_memory_bytes": ("peak memory", "bytes"),
    "step_time_ms": ("step time", "ms"),
    "energy_joules_per_sample": ("energy per sample", "J"),
}
"""Quantities whose difference is a ratio -> (words, unit)."""

NO_REASON = "no reason was recorded"

DOES_NOT_APPLY = "does not apply"


def quantity(comparison: Comparison) -> str:
    """The quantity in words."""
    words, _ = COSTS.get(comparison.quantity, (comparison.quantity.replace("_", " "), ""))
    return words


def difference(comparison: Comparison) -> Markup | None:
    """The difference as printed: a ratio for costs, signed otherwise."""
    if comparison.difference is None:
        return None
    return Markup(ratio(comparison.difference)) if comparison.is_ratio else signed(comparison.difference, 2)


def interval(comparison: Comparison) -> Markup | None:
    """The 90 % interval of the difference, in the same terms."""
    if comparison.interval is None:
        return None
    low, high = comparison.interval
    if comparison.is_ratio:
        return Markup(f"×{low:.3f} to ×{high:.3f}")
    return signed(low, 2) + Markup(" to ") + signed(high, 2)


def test_rows(run: Verification | None) -> list[Comparison]:
    """The comparisons of losses and metrics that were tested, as they were compared."""
    return [c for c in run.comparisons if c.test is not None] if run else []


def why_missing(trial: Trial, field: str) -> str:
    """Why a trial lacks a figure."""
    return trial.not_measured.get(field) or trial.error or NO_REASON


def figure(trial: Trial, field: str) -> Markup | None:
    """One field of a trial, as printed; None where there is nothing."""
    if field == "losses":
        return value(trial.losses[-1]) if trial.losses else None
    found = getattr(trial, field)
    if found is None:
        return None
    if field == "skipped_steps":
        return Markup("{} of {}").format(found, trial.steps)
    if field == "final_log2_scale":
        return power(found)
    if field == "peak_memory_bytes":
        return Markup(size(found))
    if field == "step_time_ms":
        return _step_time(trial, found)
    if field == "tensor_core":
        return _pipes(found) if found else None
    if field == "metric":
        return Markup(", ").join(Markup("{} {}").format(name, value(each)) for name, each in found.items()) or None
    return joules(found)


def _step_time(trial: Trial, milliseconds: float) -> Markup:
    shown = with_unit(milliseconds, "ms")
    if trial.step_time_iqr_ms is None:
        return shown
    low, high = trial.step_time_iqr_ms
    steps = f" of {trial.timed_steps} steps" if trial.timed_steps is not None else ""
    title = f"median{steps}; the middle half took {low:.4g} to {high:.4g} ms"
    return Markup('<span title="{}">{}</span>').format(title, shown)


def _pipes(shares: dict[str, float]) -> Markup:
    """How long the tensor pipe was active; the other pipes in the title."""
    others = ", ".join(f"{name.replace('_', ' ')} {share(v)}" for name, v in shares.items() if name != "any_tensor")
    shown = share(shares["any_tensor"]) if "any_tensor" in shares else others
    return Markup('<span title="{}">{}</span>').format(others, shown)
