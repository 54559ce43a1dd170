"""The loss-scale advice in words, for one screen: (topic, text) lines."""

from __future__ import annotations

from mpdiag.diagnosis import Advice, EnergyLost, LossScaleAdvice
from mpdiag.drift import WindowAt
from mpdiag.report.html_numbers import share
from mpdiag.report.plain_numbers import plain

BY_COUNT = "by count alone"  # in the reason of a window whose lower end the counts would put above its upper one


def scale_lines(scale: LossScaleAdvice) -> list[tuple[str, str]]:
    """The scale, what sets the ends of its window, and what is lost."""
    if scale.lower_log2 is None or scale.upper_log2 is None:
        return [("scale", scale.reason)]
    window = f"2^{scale.lower_log2}..2^{scale.upper_log2}"
    if scale.lower_log2 == scale.upper_log2:
        window = f"2^{scale.upper_log2} alone"
    if scale.log2_scale is None:
        lines = [("scale", scale.reason)]
    elif scale.mode == "none":
        lines = [("scale", f"none needed: {scale.reason}")]
    else:
        lines = [("scale", f"2^{scale.log2_scale} = {_plain(scale.log2_scale)}, {_moves(scale)}; window {window}")]
    if scale.log2_scale is not None and scale.mode != "none" and BY_COUNT in scale.reason:
        lines.append(("", scale.reason))  # why a share of elements may be lost at the scale that is recommended
    for end, topic in (("upper", "largest scale"), ("lower", "smallest scale")):
        names = scale.limited_by.get(end, ())
        if names:
            lines.append((topic, f"set by {', '.join(spoken(name) for name in names)}"))
    if scale.underflow_before is not None and scale.energy_lost_before is not None:
        # each tensor is counted for itself: what is zero in one is missing in those before it too
        before = share(scale.underflow_before)
        at_least = "at least " if scale.underflow_before and not before.startswith("<") else ""
        text = f"{at_least}{before} of the gradient elements become zero at scale 1"
        if scale.underflow_after is not None and scale.log2_scale:
            text += f", {share(scale.underflow_after)} at 2^{scale.log2_scale}"
        lines += [("underflow", text), ("norm lost", energy_words(scale))]
    return lines


def energy_words(scale: LossScaleAdvice) -> str:
    """What of the squared norm is lost: of all gradients, and by the tensor that loses most."""
    if scale.energy_lost_before is None:
        return "not measured"
    text = f"{share(scale.energy_lost_before)} of the squared norm of all gradients at scale 1"
    if scale.most_lost_before is not None:
        text += f", {share(scale.most_lost_before.share)} of one tensor's ({_where(scale.most_lost_before)})"
    after = scale.most_lost_after
    if after is not None and scale.log2_scale:
        where = "" if scale.most_lost_before is None or after.tensor == scale.most_lost_before.tensor else _where(after)
        text += f"; at 2^{scale.log2_scale} {share(after.share)}" + (f" ({where})" if where and after.share else "")
    return text


def _where(lost: EnergyLost) -> str:
    since = f", from step {lost.first_step} on" if lost.first_step else ""
    return f"{spoken(lost.tensor)}{since}"


def _moves(scale: LossScaleAdvice) -> str:
    """How the scale moves in training."""
    if scale.mode == "static":
        return "static (never raised; GradScaler still halves it at an overflow, and it stays so)"
    return scale.mode


def plan_scale_lines(advice: Advice) -> list[tuple[str, str]]:
    """The scale with the plan's FP32 islands, where it is another: without them no scale may be right."""
    plan, scale = advice.plan, advice.loss_scale
    if plan is None or not plan.enough or plan.log2_scale in (None, scale.log2_scale):
        return []
    if plan.mode == "none":
        return [("islands", "with them in FP32 no loss scale is needed")]
    return [("islands", f"with them in FP32 other gradients bind: the scale is 2^{plan.log2_scale}, {plan.mode}")]


def drift_lines(windows: tuple[WindowAt, ...], log2_scale: int | None = None) -> list[tuple[str, str]]:
    """How the window moves as training goes on. log2_scale: the scale recommended, None where it is none."""
    known = [w for w in windows if w.lower_log2 is not None]
    text = ", ".join(
        f"step {w.first_step}: "
        + ("no FP16 gradient" if w.lower_log2 is None else f"2^{w.lower_log2}..2^{w.upper_log2}")
        for w in windows
    )
    if known and max(w.lower_log2 or 0 for w in known) > min(w.upper_log2 or 0 for w in known):
        where = [] if log2_scale is None else [w for w in known if _holds(w, log2_scale)]
        start = f": start at 2^{log2_scale}, in the window of step {where[0].first_step}" if where else ""
        text += f"; no overlap{start}; the scale has to move, as dynamic scaling does"
    return [("drift", text)] if known else []


def _holds(window: WindowAt, log2_scale: int) -> bool:
    lower, upper = window.lower_log2, window.upper_log2
    return lower is not None and upper is not None and lower <= log2_scale <= upper


def serves_all(scale: LossScaleAdvice, windows: tuple[WindowAt, ...]) -> bool:
    """Whether the recommended scale lies in every window that was seen."""
    known = [(w.lower_log2, w.upper_log2) for w in windows if w.lower_log2 is not None and w.upper_log2 is not None]
    return scale.log2_scale is not None and all(low <= scale.log2_scale <= high for low, high in known)


def _plain(log2_scale: int) -> str:
    """A power of two as a number."""
    return f"{2**log2_scale:,}" if log2_scale >= 0 else plain(2.0**log2_scale)


def spoken(bound: str) -> str:
    """ "head.weight (weight_gradient)" as people say it: head.weight's weight gradient."""
    name, _, kind = bound.rpartition(" (")
    return f"{name}'s {kind.rstrip(')').replace('_', ' ')}" if name else bound
