"""An emulated autocast region and tensors for the tests of the emulation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mpdiag.target.batches import tensors_in
from mpdiag.training.emulation import cuda_policy

HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
both = pytest.mark.parametrize("dtype", [HALF, BF16], ids=["float16", "bfloat16"])


@contextmanager
def region(dtype: torch.dtype = HALF) -> Iterator[None]:
    """One emulated autocast region."""
    with cuda_policy() as forget, torch.autocast("cpu", dtype=dtype):
        try:
            yield
        finally:
            forget()


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def h(*shape: int) -> torch.Tensor:
    """16-bit inputs in the region's type, as a linear layer would hand them on."""
    return torch.rand(*shape).add(0.1).to(torch.get_autocast_dtype("cpu"))


def dtypes(value: Any) -> set[torch.dtype]:
    return {t.dtype for t in tensors_in(value) if t.is_floating_point()}
