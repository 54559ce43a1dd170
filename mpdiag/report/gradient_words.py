"""The first gradients beside FP32's, in words and in figures for people."""

from __future__ import annotations

from mpdiag.accuracy import GradientCheck

LARGE = 0.1  # from here on it looks alarming
TWICE = 2.0  # TF32 rounds to as many bits as FP16, so what it shares is within this
CANDIDATES = ("fp16-plan", "fp16", "bf16", "tf32")


def gradient_line(check: GradientCheck) -> str | None:
    """One line for the terminal: each candidate's error, beside what another batch changes; None without a check."""
    measured = {each.arm: each for each in check.arms if each.gradient_error is not None}
    found = [measured[name] for name in CANDIDATES if name in measured]
    if not found:
        return None
    first, others = found[0], found[1:]
    told = f"{first.arm}'s is {percent(first.gradient_error)} off FP32's before training"
    if first.noise_share is not None:
        told += f", {percent(first.noise_share)} of what another batch changes"
    line = "; ".join([told, *(f"{each.arm} {percent(each.gradient_error)}" for each in others)])
    return line + _calming(check, first.gradient_error or 0.0)


def _calming(check: GradientCheck, error: float) -> str:
    """What to know of a large error before one is alarmed, as the page has it: the noise of FP32, TF32, amplification.

    TF32 that is as far off says that the rounding is to blame and not FP16's range; without it nothing is excused.
    """
    tf32 = next((each.gradient_error for each in check.arms if each.arm == "tf32"), None)
    if error < LARGE:
        return ""
    again = [f"FP32 again {percent(check.repeat_error)}"] if check.repeat_error else []
    if tf32 is not None and error < TWICE * tf32:
        again.append("TF32 about as far off: a deep network amplifies any rounding")
    else:
        again.append("a deep network can amplify any rounding")
    return f" ({', '.join(again)})"


def percent(share: float | None) -> str:
    """Two figures, so that 0.04 % and 0.3 % can be told apart; "-" for none."""
    if share is None:
        return "-"
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:,.0f} %"


def caption(check: GradientCheck) -> str:
    """What the table shows, as one reads it above."""
    return (
        f"Gradients of {check.batches} batches at the weights where the runs begin, dropout off: how far all "
        "parameters' gradient, taken as one vector, is from IEEE FP32's, and how that compares with what another batch "
        "of FP32 changes. One layer far above the others is a broken one; how training ends is told by the runs above."
        + _repeat(check)
        + _amplified(check)
    )


def _amplified(check: GradientCheck) -> str:
    """Why a large error need not alarm: a ResNet-50 at initialisation turns errors of 5e-4 in its weights into 63 %."""
    errors = {each.arm: each.gradient_error for each in check.arms if each.gradient_error is not None}
    fp16, tf32 = errors.get("fp16", 0.0), errors.get("tf32")
    if fp16 < LARGE:
        return ""
    beside = " TF32 is about as far off." if tf32 is not None and fp16 < TWICE * tf32 else ""
    return f"{beside} A deep network can amplify any rounding: a ReLU that flips turns its whole gradient on or off."


def _repeat(check: GradientCheck) -> str:
    if not check.repeat_error:
        return " FP32 again gives the same bits." if check.repeat_error == 0 else ""
    return f" FP32 again is off by {percent(check.repeat_error)}: sums in another order."
