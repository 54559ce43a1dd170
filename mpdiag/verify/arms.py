"""The arms of a verification: FP32 as the reference, the candidates, and controls that show the test can fail."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpdiag.device.precision_settings import configured, is_ieee
from mpdiag.diagnosis import LossScaleAdvice
from mpdiag.training.precision import Precision

BASELINE = "fp32"
FP16 = "fp16"
BF16 = "bf16"


@dataclass(frozen=True)
class Arm:
    """One way to train. The baseline comes first; a control is expected to be worse on a job that needs care."""

    name: str
    precision: Precision
    control: bool = False


def arms_for(advice: LossScaleAdvice, device: torch.device) -> tuple[list[Arm], list[str]]:
    """The arms for this advice on this device, and why any of the usual ones is left out.

    Where no scale is feasible, FP16 starts at the window's upper end, so that the run can show what happens.
    """
    left_out = []
    arms = [Arm(BASELINE, Precision("FP32", ieee=True))]
    if is_ieee(device):
        left_out.append("arm fp32-configured: left out, because your settings already compute FP32 in full")
    else:
        shown = ", ".join(f"{name}={value}" for name, value in configured(device).items())
        arms.append(Arm("fp32-configured", Precision(f"FP32 as configured ({shown})")))
    scale = advice.log2_scale if advice.log2_scale is not None else advice.upper_log2
    scaled = None if advice.mode == "none" and advice.log2_scale == 0 else scale
    interval = advice.growth_interval or 2000
    if advice.mode == "static":
        interval = 10**9
    arms.append(Arm(FP16, Precision("FP16 autocast", torch.float16, log2_scale=scaled, growth_interval=interval)))
    if scaled is None:
        left_out.append("arm fp16-unscaled: left out, because no loss scale is recommended")
    else:
        arms.append(Arm("fp16-unscaled", Precision("FP16 autocast, no loss scale", torch.float16), control=True))
    arms.append(Arm(BF16, Precision("BF16 autocast", torch.bfloat16)))
    arms.append(
        Arm("fp16-pure", Precision("FP16, no master weights, no loss scale", torch.float16, pure=True), control=True)
    )
    return arms, left_out
