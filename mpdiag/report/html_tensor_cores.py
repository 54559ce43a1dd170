"""The tensor-core section: for each arm the evidence, where its kernel time went, and its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from mpdiag.costs.kernels import ArmKernels, Flops, LayerUse, WhyNot
from mpdiag.costs.tensor_cores import BF16, COPY, FP16, MATMULS, Ceilings
from mpdiag.report.html_numbers import THIN, share, value
from mpdiag.report.tensor_core_words import (
    answer_in_words,
    busy_words,
    counted_words,
    gain_in_words,
    kernel_time_words,
    missed,
    waits,
)

WORST = 20  # layers shown before the rest folds away: a screen
GAINS = 5  # layers named above the table: what is worth mending first
BAR_WIDTH, BAR_HEIGHT = 560, 16
SEGMENTS = (
    ("yes", "on tensor cores"),
    ("no", "not on them"),
    ("ambiguous", "names that can be either"),
    ("unknown", "unknown names"),
)
_SMALLEST = 1.0  # pixels: a part that is there is seen
_BEYOND = 1.0005  # what prints as more than 100.0 %
_HALF = {"float16": FP16, "bfloat16": BF16}


@dataclass(frozen=True)
class LayerRow:
    """One layer, ready to print. css: how its answer is coloured ("good", "bad", "dim" or "")."""

    layer: LayerUse
    answer: str
    css: str
    rate: Markup | None
    reasons: tuple[tuple[WhyNot, str], ...]


@dataclass(frozen=True)
class ArmView:
    """What the page shows of one arm. counted: what is known of a hardware count that is not what formulas give.

    kernel_time, busy: in words, empty where nothing was traced.
    """

    arm: ArmKernels
    bar: Markup | None
    shares: tuple[tuple[str, str, str], ...]  # (class, what, share)
    rate: Markup | None
    levels: tuple[tuple[str, str, str, str], ...]  # (level, name, answer, text)
    findings: tuple[tuple[WhyNot, str], ...]
    gains: tuple[tuple[LayerUse, WhyNot, str], ...]
    rows: tuple[LayerRow, ...]
    counted: str | None = None
    kernel_time: str = ""
    busy: str = ""


@dataclass(frozen=True)
class CeilingRow:
    """The most that this GPU reached in one arithmetic. window, clock None: not recorded. held: what held it down.

    burst: the speed and the clock of its first 50 ms, None where it was not taken.
    """

    what: str
    reached: str
    window: str | None
    clock: str | None
    held: str
    burst: str | None = None


@dataclass(frozen=True)
class TensorCoreView:
    """The section. flops: a sentence on what was counted; None without. ceilings: what this GPU reaches."""

    arms: tuple[ArmView, ...]
    flops: str | None
    ceilings: tuple[CeilingRow, ...] = ()


def tensor_core_context(
    kernels: Sequence[ArmKernels],
    flops: Flops | None,
    reason: str | None,
    ceilings: Ceilings | None = None,
    ceilings_reason: str | None = None,
    flops_reason: str | None = None,
) -> dict[str, Any]:
    """What templates/tensor_cores.html needs. reason: why no arm was traced, where none was.

    ceilings_reason: why there are no ceilings, and so no rate is held against one. flops_reason: why the FLOPs of a
    step were not counted.
    """
    return {
        "ceilings_reason": None if ceilings else (ceilings_reason or "").removeprefix("not measured: ") or None,
        "flops_reason": None if flops else (flops_reason or "").removeprefix("not measured: ") or None,
        "tensor_view": tensor_core_view(kernels, flops, ceilings),
        "tensor_view_reason": reason or "no arm was traced",
        "tensor_segments": SEGMENTS,
        "tensor_worst": WORST,
    }


def tensor_core_view(
    kernels: Sequence[ArmKernels], flops: Flops | None, ceilings: Ceilings | None = None
) -> TensorCoreView | None:
    """The view of all traced arms; None where none was traced, not even in vain."""
    if not kernels:
        return None
    return TensorCoreView(tuple(_arm(each, ceilings) for each in kernels), _flops(flops), ceiling_rows(ceilings))


def _arm(arm: ArmKernels, ceilings: Ceilings | None) -> ArmView:
    time = arm.time
    shown = [(css, words, time.by_class.get(css, 0.0)) for css, words in SEGMENTS] if time else []
    levels = arm.ladder.levels if arm.ladder else ()
    waiting = waits(arm)
    return ArmView(
        arm=arm,
        bar=_bar(arm.arm, shown) if time else None,
        shares=tuple((css, words, share(part)) for css, words, part in shown),
        rate=_rate(arm.tflops_per_s, arm.of_ceiling, False, _limit(ceilings, arm.arithmetic)),
        levels=tuple((each.level, each.name, answer_in_words(each.used), each.text) for each in levels),
        findings=tuple((each, gain_in_words(each, waiting)) for each in arm.findings),
        gains=tuple((layer, why, gain_in_words(why)) for layer, why in missed(arm)[:GAINS]),
        rows=tuple(_row(layer, arm.arithmetic, waiting, ceilings) for layer in arm.layers or ()),
        counted=counted_words(arm.ladder),
        kernel_time=kernel_time_words(time) if time else "",
        busy=busy_words(time) if time else "",
    )


def _bar(arm: str, parts: Sequence[tuple[str, str, float]]) -> Markup:
    """One horizontal bar of the arm's whole kernel time, its parts side by side."""
    drawn, left = [], 0.0
    for css, _, part in parts:
        if part <= 0:
            continue
        width = max(_SMALLEST, part * BAR_WIDTH)
        drawn.append(f'<rect class="tc-{css}" x="{left:.4g}" y="0" width="{width:.4g}" height="{BAR_HEIGHT}"/>')
        left += width
    told = ", ".join(f"{share(part)} {words}" for _, words, part in parts)
    return Markup(
        f'<svg class="tc-bar" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(arm)}: {escape(told)}">{"".join(drawn)}</svg>'
    )


def _row(layer: LayerUse, arithmetic: str | None, waiting: bool, ceilings: Ceilings | None) -> LayerRow:
    css = {"yes": "good", "mixed": "", "unknown": "dim"}.get(layer.tensor_cores, "")
    if layer.tensor_cores == "no":
        css = "dim" if arithmetic == "FP32" or any(w.gain_ms == 0 for w in layer.why_not) else "bad"
    reasons = tuple((each, gain_in_words(each, waiting)) for each in layer.why_not)
    own = _HALF.get(layer.dtype or "", arithmetic)
    rate = _rate(layer.tflops_per_s, layer.of_ceiling, layer.of_burst, _limit(ceilings, own))
    return LayerRow(layer, layer.tensor_cores, css, rate, reasons)


def _rate(rate: float | None, of_ceiling: float | None, of_burst: bool, limit: str) -> Markup | None:
    """A rate and its share of a ceiling. limit: what held the sustained one down, or nothing."""
    if rate is None:
        return None
    shown = value(rate, 3) + Markup(f"{THIN}TFLOP/s")
    if of_ceiling is None:
        return shown
    shown += Markup(f", {share(of_ceiling)} of the {'burst' if of_burst else 'sustained'} ceiling")
    if of_ceiling < _BEYOND:
        return shown
    if of_burst:
        return shown + Markup(": beyond it, in a shape or by an algorithm that is faster than the ceiling's product")
    held = f"which was held down ({escape(limit)})" if limit else "as a short load can be"
    return shown + Markup(f": beyond it, {held}")


def _limit(ceilings: Ceilings | None, arithmetic: str | None) -> str:
    body = next((body for body, of in MATMULS.items() if of == arithmetic), "")
    held = ceilings.limited_by.get(body, ()) if ceilings else ()
    return ", ".join(held)


def _flops(flops: Flops | None) -> str | None:
    if flops is None:
        return None
    parts = [
        f"A step of the model is {_large(flops.model)}: "
        f"{_large(flops.forward)} forward, {_large(flops.backward)} backward."
    ]
    if flops.varied:
        least, most = min(flops.by_batch), max(flops.by_batch)
        parts.append(f"That is a mean: {len(flops.by_batch)} batches take {_large(least)} to {_large(most)}.")
    if flops.recomputed:
        parts.append(f"Checkpointing computes {_large(flops.recomputed)} of it a second time.")
    if flops.corrections:
        parts.append(f"Mended where torch's counter is wrong: {'; '.join(flops.corrections)}.")
    parts += [f"{note[:1].upper()}{note[1:]}." for note in flops.notes if "second time" not in note]
    if flops.uncounted:
        parts.append(f"Without a formula, so not counted: {', '.join(flops.uncounted)}.")
    return " ".join(parts)


def ceiling_rows(found: Ceilings | None) -> tuple[CeilingRow, ...]:
    """The ceilings, sustained with their window and clock, whether that was steady, and in a burst."""
    if found is None:
        return ()
    speeds = [
        (body, arithmetic, f"{found.tflops[arithmetic]:.3g}{THIN}TFLOP/s")
        for body, arithmetic in MATMULS.items()
        if arithmetic in found.tflops
    ]
    if found.copy_gbytes_per_second is not None:
        speeds.append((COPY, "copy", f"{found.copy_gbytes_per_second:,.0f}{THIN}GB/s"))
    return tuple(_ceiling(found, *each) for each in speeds)


def _ceiling(found: Ceilings, body: str, what: str, reached: str) -> CeilingRow:
    seconds, clock, falling = found.window_seconds.get(body), found.sm_clock_mhz.get(body), found.bursts.get(body)
    burst, its_clock = found.burst_tflops.get(what), found.burst_clock_mhz.get(body)
    at = f" at {its_clock:,}{THIN}MHz" if its_clock else ""
    return CeilingRow(
        what,
        reached,
        f"{seconds:.1f}{THIN}s" if seconds else None,
        f"{clock:,}{THIN}MHz" if clock else None,
        f"{falling}; longer work is slower" if falling else ", ".join(found.limited_by.get(body, ())),
        f"{burst:.3g}{THIN}TFLOP/s{at}" if burst is not None else None,
    )


def _large(count: int) -> str:
    for unit, name in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= unit:
            return f"{count / unit:.3g}{THIN}{name}"
    return f"{count:,}{THIN}FLOP"
