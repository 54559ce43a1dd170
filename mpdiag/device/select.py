"""Which device a scan runs on."""

from __future__ import annotations

import torch

from mpdiag.errors import UsageError


def select_device(name: str) -> torch.device:
    """auto: the first CUDA device if there is one, else the CPU. Raises UsageError `no-cuda`."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if name == "cuda":
        if not torch.cuda.is_available():
            why = "this torch is a CPU build" if torch.version.cuda is None else "torch finds no CUDA device"
            raise UsageError(
                "no-cuda",
                f"--device cuda: {why}",
                "use --device cpu: the CUDA autocast policy is emulated there",
            )
        return torch.device("cuda", 0)
    return torch.device("cpu")
