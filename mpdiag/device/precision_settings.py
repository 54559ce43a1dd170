"""FP32 that is FP32: torch's TF32 and reduced-precision switches, set through one API and put back.

An untouched torch runs convolutions in TF32 on Ampere and later (cudnn.conv defaults to "tf32"), so "FP32" has to
be asked for. Only `fp32_precision` is used: mixing it with the older allow_tf32 flags makes torch raise on reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _switches() -> dict[str, Any]:
    backends = torch.backends
    named = {
        "cuda.matmul": backends.cuda.matmul,
        "cudnn.conv": getattr(backends.cudnn, "conv", None),
        "cudnn.rnn": getattr(backends.cudnn, "rnn", None),
        "mkldnn.matmul": getattr(backends.mkldnn, "matmul", None),
        "mkldnn.conv": getattr(backends.mkldnn, "conv", None),
        "mkldnn.rnn": getattr(backends.mkldnn, "rnn", None),
    }
    return {name: switch for name, switch in named.items() if hasattr(switch, "fp32_precision")}


def configured(device: torch.device) -> dict[str, str]:
    """{switch: "ieee", "tf32", "bf16" or "none"} as the user's settings have it, for the device's backends."""
    ours = ("cuda", "cudnn") if device.type == "cuda" else ("mkldnn",)
    return {n: str(s.fp32_precision) for n, s in _switches().items() if n.startswith(ours)}


def is_ieee(device: torch.device) -> bool:
    """Whether the user's settings already compute FP32 in IEEE arithmetic ("none" means the same)."""
    return all(value in ("ieee", "none") for value in configured(device).values())


@contextmanager
def fp32_products(arithmetic: str) -> Iterator[None]:
    """Within it, FP32 products are computed in "ieee" FP32 or in "tf32"; the user's settings come back on exit.

    TF32 is for CUDA's backends only: oneDNN on a CPU would round to it too, which no one asked for. CUDA's switches are
    set through what they inherit from: written to once, torch's default of cudnn.conv and cudnn.rnn (TF32 until a
    parent says otherwise, torch 2.13) cannot be had back.
    """
    undo: list[tuple[Any, str]] = []

    def put(switch: Any, own: str, value: str) -> None:
        undo.append((switch, own))
        switch.fp32_precision = value

    try:
        for_cuda: Any = torch.backends.cudnn  # its fp32_precision is that of all of CUDA, cuBLAS included
        put(for_cuda, _own(for_cuda, torch.backends), arithmetic)
        for name, switch in _switches().items():
            if name.startswith("mkldnn"):
                put(switch, _own(switch, torch.backends.mkldnn), "ieee")
            elif switch.fp32_precision != arithmetic:  # it does not follow, so that is a value of its own
                put(switch, switch.fp32_precision, arithmetic)
        yield
    finally:
        for switch, own in reversed(undo):
            switch.fp32_precision = own


def _own(switch: Any, parent: Any) -> str:
    """What a switch was set to itself; "none" where it follows its parent, which torch's getter does not tell apart.

    So the root is turned for a moment, to see whether both follow. A value of its own that is written back as an
    inherited one, or the reverse, would show only when the user sets a parent later.
    """
    shown: str = switch.fp32_precision
    root: Any = torch.backends  # torch's types know nothing of its fp32_precision
    if shown != parent.fp32_precision:
        return shown
    before = root.fp32_precision
    try:
        root.fp32_precision = "tf32" if before == "ieee" else "ieee"
        return "none" if switch.fp32_precision == parent.fp32_precision else shown
    finally:
        root.fp32_precision = before
