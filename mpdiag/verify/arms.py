"""The arms of a verification: FP32 as the reference, the candidates, and controls that show the test can fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mpdiag.arm_names import (
    BASELINE,
    BF16,
    FP16,
    FP16_CHANNELS_LAST,
    FP16_COMPILED,
    FP16_PLAN,
    FP16_PURE,
    FP16_UNSCALED,
    FP32_CONFIGURED,
    TF32,
)
from mpdiag.costs.tensor_cores import TF32_MATMUL
from mpdiag.device.bodies import unsupported
from mpdiag.device.precision_settings import configured, is_ieee
from mpdiag.diagnosis import LossScaleAdvice
from mpdiag.plan import IslandPlan
from mpdiag.training.precision import Precision

_BESIDE_ISLANDS = {
    FP16_CHANNELS_LAST: f"it is held against {FP16}, and {FP16_PLAN} is what to train in here",
    FP16_COMPILED: f"{FP16_PLAN} keeps modules in FP32, for which torch.compile would trace the model anew",
}


@dataclass(frozen=True)
class Arm:
    """One way to train. The baseline comes first; a control is expected to be worse on a job that needs care."""

    name: str
    precision: Precision
    control: bool = False


def tf32_arm(device: torch.device) -> tuple[Arm | None, str | None]:
    """(FP32 training with TF32 products, its own cheap speed-up; None with the reason on a GPU that has no TF32)."""
    reason = unsupported(TF32_MATMUL, device) if device.type == "cuda" else None
    return (Arm(TF32, Precision("FP32 with TF32 products", tf32=True)) if reason is None else None), reason


def timed_arms(
    trained: Sequence[Arm], model: torch.nn.Module, device: torch.device
) -> tuple[dict[str, Precision], list[str]]:
    """(what is timed, the baseline first; why any of the usual ones is left out).

    Those are the arms that were trained, without controls, and what could be had: TF32, channels_last (where there are
    images) and torch.compile, both with FP16.
    """
    left_out = []
    arms = {arm.name: arm.precision for arm in trained if not arm.control}
    tf32, reason = tf32_arm(device)
    if tf32 is not None:
        arms[TF32] = tf32.precision
    else:
        left_out.append(f"arm {TF32}: not timed, {reason}")
    best = arms.get(FP16_PLAN) or arms.get(FP16)
    if best is None:
        return arms, left_out
    could = {FP16_COMPILED: replace(best, name=f"{best.name}, torch.compile", compiled=True)}
    if any(isinstance(module, torch.nn.Conv2d) for module in model.modules()):
        channels_last = replace(best, name=f"{best.name}, channels_last", channels_last=True)
        could = {FP16_CHANNELS_LAST: channels_last, **could}
    if best.keep_fp32:
        return arms, left_out + [f"arm {name}: not timed, {_BESIDE_ISLANDS[name]}" for name in could]
    return arms | could, left_out


def arms_for(
    advice: LossScaleAdvice, device: torch.device, plan: IslandPlan | None = None
) -> tuple[list[Arm], list[str]]:
    """The arms for this advice on this device, and why any of the usual ones is left out.

    Where no scale is feasible, FP16 starts at the window's upper end, so that the run can show what happens. Where
    FP32 islands were found to help, FP16 is trained with them too.
    """
    left_out = []
    arms = [Arm(BASELINE, Precision("FP32", ieee=True))]
    if is_ieee(device):
        left_out.append(f"arm {FP32_CONFIGURED}: left out, because your settings already compute FP32 in full")
    else:
        shown = ", ".join(f"{name}={value}" for name, value in configured(device).items())
        arms.append(Arm(FP32_CONFIGURED, Precision(f"FP32 as configured ({shown})")))
    scaled, interval = _scale(advice, advice.upper_log2)
    fp16 = Arm(FP16, Precision("FP16 autocast", torch.float16, log2_scale=scaled, growth_interval=interval))
    if plan is not None and plan.enough:  # before FP16 as it is, which it is there to mend: a budget may end
        start, grows = _scale(plan, None)
        name = f"FP16 autocast, {len(plan.keep_fp32)} module(s) in FP32"
        arms.append(Arm(FP16_PLAN, Precision(name, torch.float16, False, start, grows, keep_fp32=plan.keep_fp32)))
    elif plan is not None:
        left_out.append(f"arm {FP16_PLAN}: left out, because no plan was found: {plan.reason}")
    arms.append(fp16)
    if scaled is None:
        left_out.append(f"arm {FP16_UNSCALED}: left out, because no loss scale is recommended")
    else:
        arms.append(Arm(FP16_UNSCALED, Precision("FP16 autocast, no loss scale", torch.float16), control=True))
    arms.append(Arm(BF16, Precision("BF16 autocast", torch.bfloat16)))
    pure = Precision("FP16, no master weights, no loss scale", torch.float16, pure=True)
    arms.append(Arm(FP16_PURE, pure, control=True))
    return arms, left_out


def _scale(advice: LossScaleAdvice | IslandPlan, otherwise: int | None) -> tuple[int | None, int]:
    """(log2 of the scale to start at, None for none; steps until it is tried to grow)."""
    scale = advice.log2_scale if advice.log2_scale is not None else otherwise
    if advice.mode == "none" and advice.log2_scale == 0:
        scale = None
    return scale, 10**9 if advice.mode == "static" else advice.growth_interval or 2000
