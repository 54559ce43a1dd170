"""The loss scale to train with, from the windows of the stretches of training that were observed.

Inside the window both ends drift: gradients shrink as a model learns, and their maxima grow. The scale keeps
GROWTH_OCTAVES below the upper end as far as the lower end allows, because each octave there is a step that is not
skipped, while octaves above the lower end recover almost nothing: reports/loss_scale.md has both figures. Where
several stretches were observed, the scale is one that serves them all; where there is none, the first stretch's, which
dynamic scaling then has to move.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.advice.scale_window import CAP, MANY_STEPS, Window, called, common, fp16_gradients, window_of
from mpdiag.diagnosis import Capture, EnergyLost, LossScaleAdvice, ScalePoint
from mpdiag.formats import FP16
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import for_all_optimizers

DEFAULT_INIT_LOG2 = 16  # torch.amp.GradScaler's init_scale
DEFAULT_GROWTH_INTERVAL = 2000  # torch.amp.GradScaler's
BACKOFF_FACTOR = 0.5  # torch.amp.GradScaler's; only powers of two scale without a rounding error of their own
NARROW_OCTAVES = 3  # a doubling of the scale soon leaves such a window, so it should be tried rarely
WIDE_OCTAVES = 12  # room for a static scale to be wrong by a factor of 60 on both sides
DECAY_OCTAVES = 8  # gradients shrink as a model learns (ResNet-18: 0.6 % lost at scale 1 at first, 84 % later)
# within 2,000 steps the largest gradient rose over that of the first 20 by 0.7 octaves (median of 8 jobs, 3
# seeds), 5.8 at most, and the upper end has two octaves of its own. Set on seeds 0 to 2 of benchmarks/loss_scale.py,
# tested on others
GROWTH_OCTAVES = 4
QUICKEST_GROWTH = 100  # steps: a scale that doubles more often is at its upper end at once, and skips there
WITHOUT_SCALE = """\
with torch.autocast("cuda", dtype=torch.float16):
    loss = compute_loss(model, batch)
loss.backward()
optimizer.step()
optimizer.zero_grad()
"""

Part = tuple[Sequence[int], Capture]


def recommend(capture: Capture, parts: Sequence[Part] = ()) -> LossScaleAdvice:
    """The advice for one capture; parts: (steps, capture) of each stretch of training that it was observed in."""
    tables = fp16_gradients(capture)
    if not tables:
        reason = "no gradient that is FP16 under autocast was seen"
        return LossScaleAdvice(None, "none", None, None, {}, None, None, None, None, None, reason)
    # where a scan ended early, the only stretch that is whole may have no gradient
    told = [(list(steps), seen) for steps, seen in parts if fp16_gradients(seen)]
    stretches = told or [(list(range(capture.first_step, capture.first_step + capture.steps)), capture)]
    known = [(steps, found) for steps, seen in stretches if (found := window_of(seen)) is not None]
    window, reason, moves = _together(known, capture.steps)
    chosen, mode = (None, "none") if window.empty else _choose(window, max(seen.steps for _, seen in stretches))
    interval = 4 * DEFAULT_GROWTH_INTERVAL if window.octaves < NARROW_OCTAVES else DEFAULT_GROWTH_INTERVAL
    if chosen is None:
        reason = f"no scale serves all: 2^{window.lower} or more is needed, 2^{window.upper} or less is possible"
    elif moves:
        mode, interval = "dynamic", _interval(known, chosen)  # the window leaves the scale behind
    elif mode == "none":
        reason = f"nothing that matters is lost at scale 1 ({reason})"
    pooled = sum((t.signal for t in tables), ExponentHistogram())
    snippet = _snippet(chosen, mode, interval)
    return LossScaleAdvice(
        log2_scale=chosen,
        mode=mode,
        lower_log2=window.lower,
        upper_log2=window.upper,
        limited_by={"lower": window.binds_lower, "upper": window.binds_upper},
        underflow_before=pooled.usage(FP16).underflow,
        underflow_after=None if chosen is None else pooled.usage(FP16, chosen).underflow,
        energy_lost_before=pooled.energy_lost(FP16),
        energy_lost_after=None if chosen is None else pooled.energy_lost(FP16, chosen),
        snippet=snippet and for_all_optimizers(snippet, capture.loop),
        reason=reason,
        growth_interval=interval if mode == "dynamic" else None,
        backoff_factor=None if mode == "none" else BACKOFF_FACTOR,
        curve=_curve(pooled, min(window.lower, 0) - 4, max(window.upper, CAP) + 8),
        most_lost_before=_most_lost(stretches, 0),
        most_lost_after=None if chosen is None else _most_lost(stretches, chosen),
    )


def _together(known: Sequence[tuple[list[int], Window]], steps: int) -> tuple[Window, str, bool]:
    """The window to choose from, why, and whether the scale has to move with the training."""
    conflict = next((window for _, window in known if window.empty), None)
    if conflict is not None:
        return conflict, "", False
    first_steps, first = known[0]
    window = common([found for _, found in known])
    if not window.empty:
        reason = f"window 2^{window.lower}..2^{window.upper} over {steps} steps"
        if window.by_count is not None:
            # what the upper end loses is less than what rounding to FP16 changes anyway
            counted = f"it would be 2^{window.by_count}" if window.by_count <= CAP else "no scale would do"
            reason = f"2^{window.upper} loses elements only below FP16's own rounding error; by count alone {counted}"
        return window, reason, False
    reason = (
        f"window 2^{first.lower}..2^{first.upper} from step {first_steps[0]} on; later it lies elsewhere, and no one "
        f"scale serves all that was seen"
    )
    return first, reason, True


def _interval(known: Sequence[tuple[list[int], Window]], chosen: int) -> int:
    """The growth interval with which the scale is above the lower end of each later window by the time it begins."""
    began = known[0][0][0]
    needed = [(steps[0] - began) // (found.lower - chosen) for steps, found in known[1:] if found.lower > chosen]
    return max(QUICKEST_GROWTH, min([*needed, DEFAULT_GROWTH_INTERVAL]))


def _choose(window: Window, steps: int) -> tuple[int, str]:
    lower, upper = window.lower, window.upper
    if lower <= -DECAY_OCTAVES and upper >= GROWTH_OCTAVES:  # without a scaler nobody skips a step that overflows
        return 0, "none"
    if window.octaves >= WIDE_OCTAVES and steps >= MANY_STEPS:
        return upper - GROWTH_OCTAVES, "static"
    return max(lower, upper - GROWTH_OCTAVES), "dynamic"


def _most_lost(stretches: Sequence[Part], k: int) -> EnergyLost | None:
    """Where the largest share of one tensor's squared norm is lost at 2^k."""
    found = (
        EnergyLost(called(t), t.signal.energy_lost(FP16, k), steps[0])
        for steps, seen in stretches
        for t in fp16_gradients(seen)
    )
    return max(found, key=lambda lost: lost.share, default=None)


def _snippet(log2_scale: int | None, mode: str, growth_interval: int) -> str | None:
    if log2_scale is None:
        return None
    if mode == "none":
        return WITHOUT_SCALE
    extra = why = ""
    if mode == "static":
        extra = ", growth_interval=10**9"
    elif growth_interval != DEFAULT_GROWTH_INTERVAL:
        extra = f", growth_interval={growth_interval}"
        narrow = growth_interval > DEFAULT_GROWTH_INTERVAL
        because = "the window is narrow, and a doubling leaves it" if narrow else "later gradients need a larger scale"
        why = f"# grows every {growth_interval} steps, not torch's {DEFAULT_GROWTH_INTERVAL}: {because}\n"
    return (
        f'{why}scaler = torch.amp.GradScaler("cuda", init_scale=2.0**{log2_scale}{extra})\n\n'
        'with torch.autocast("cuda", dtype=torch.float16):\n    loss = compute_loss(model, batch)\n'
        "scaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()\noptimizer.zero_grad()\n"
    )


def _curve(pooled: ExponentHistogram, first: int, last: int) -> tuple[ScalePoint, ...]:
    points = []
    for k in range(first, last + 1):
        usage = pooled.usage(FP16, k)
        points.append(ScalePoint(k, usage.underflow, pooled.energy_lost(FP16, k), usage.overflow))
    return tuple(points)
