"""A short hash of a batch, the same on every machine that draws the same data."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from mpdiag.target.batches import tensors_in

DIGITS = 3  # of a float, in units of its tensor's mean magnitude: torch.randn differs by 1e-7 between kinds of CPU
SAMPLED = 16  # floats of each tensor that are looked at one by one; all of them are in its mean
PLAIN = (bool, int, float, str, bytes)


def batch_hash(batch: Any) -> str:
    """16 hexadecimal digits of a batch's shapes, types and values: whole numbers exactly, floats to three digits.

    Equal batches have equal ones whichever CPU drew them; of another draw of the same distribution it differs.
    """
    hashed = hashlib.sha256()
    for tensor in tensors_in(batch):
        hashed.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        hashed.update(_values(tensor.detach()))
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            hashed.update(f"{leaf.shape} {leaf.dtype};".encode())
            hashed.update(_values(torch.from_numpy(np.array(leaf))))
        elif isinstance(leaf, PLAIN):
            hashed.update(f"{leaf!r};".encode())
    return hashed.hexdigest()[:16]


def _values(tensor: torch.Tensor) -> bytes:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        return b""  # shape and type have to do
    flat = tensor.cpu().contiguous().reshape(-1)
    if not (flat.is_floating_point() or flat.is_complex()):
        return bytes(flat.view(torch.uint8).numpy())
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if flat.numel() == 0:
        return b""
    flat = flat if flat.dtype == torch.float64 else flat.float()
    finite = flat.isfinite()
    scale = float(torch.where(finite, flat, 0.0).abs().mean(dtype=torch.float64))
    # in whole numbers: a float32 linspace ends beyond a tensor of 2^24 elements, and kinds of CPU round it differently
    places = [(flat.numel() - 1) * i // (SAMPLED - 1) for i in range(SAMPLED)]
    chosen = flat[places].double().tolist()
    told = [f"{value / scale:.{DIGITS}f}" if scale and np.isfinite(value) else f"{value}" for value in chosen]
    return f"{scale:.{DIGITS}e} {int(finite.sum())} {' '.join(told)}".encode()
