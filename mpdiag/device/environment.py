"""What this machine is, as the report states it."""

from __future__ import annotations

import os
import platform

import torch

from mpdiag.device.nvml import driver_version
from mpdiag.device.precision_settings import configured
from mpdiag.diagnosis import Environment
from mpdiag.origin import MATMUL_FLAGS
from mpdiag.version import __version__

OVERRIDES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
"""Environment variables by which CUDA's libraries, or torch, turn TF32 on or off over the program's head."""


def describe(device: torch.device) -> Environment:
    """Versions, the GPU in use (None on a CPU) and the user's settings of arithmetic."""
    gpu = capability = None
    on_gpu = device.type == "cuda"
    if on_gpu:
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
        driver=driver_version() if on_gpu else None,
        gpu=gpu,
        compute_capability=capability,
        fp32_precision=configured(device),
        cudnn_benchmark=bool(torch.backends.cudnn.benchmark) if on_gpu else None,
        matmul_flags=_matmul_flags() if on_gpu else {},
        overrides={name: os.environ[name] for name in OVERRIDES if name in os.environ} if on_gpu else {},
    )


def _matmul_flags() -> dict[str, bool]:
    """The flags that this torch has; a flag it does not know raises AttributeError."""
    found = {name: getattr(torch.backends.cuda.matmul, name, None) for name in MATMUL_FLAGS}
    return {name: bool(value) for name, value in found.items() if value is not None}
