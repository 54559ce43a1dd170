"""What this machine is, as the report states it."""

from __future__ import annotations

import platform

import torch

from mpdiag.device.nvml import driver_version
from mpdiag.device.precision_settings import configured
from mpdiag.diagnosis import Environment
from mpdiag.version import __version__


def describe(device: torch.device) -> Environment:
    """Versions, the GPU in use (None on a CPU) and the user's FP32 settings."""
    gpu = capability = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = properties.name
        capability = f"{properties.major}.{properties.minor}"
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        mpdiag=__version__,
        platform=f"{platform.system()} {platform.machine()}",
        cpu_threads=torch.get_num_threads(),
        cuda=torch.version.cuda,
        driver=driver_version() if device.type == "cuda" else None,
        gpu=gpu,
        compute_capability=capability,
        fp32_precision=configured(device),
    )
