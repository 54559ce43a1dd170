"""Known pieces of work for a CUDA device: matrix products, elementwise work, a copy; their operations are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mpdiag.costs.tensor_cores import (
    BF16,
    BODIES,
    COPY,
    ELEMENTWISE,
    FP16,
    FP32,
    MATMULS,
    TF32,
)
from mpdiag.device.precision_settings import fp32_products

SIZES = (8192, 4096, 2048)  # M = N = K, the largest that memory has room for; 8192 is where an H100 sustains most
ROOM = 3  # times the bytes of three FP32 matrices: the user's own job needs the rest
STREAM_BYTES = 2**29  # an array of the elementwise work and of the copy: ten times the largest L2 there is
CHECK_SIZE = 1024  # M = N = K of the product that is held against FP64
AMPERE = (8, 0)  # the first with BF16 and TF32 in its tensor cores
_DTYPES = {FP16: torch.float16, BF16: torch.bfloat16, TF32: torch.float32, FP32: torch.float32}


@dataclass(frozen=True)
class Body:
    """One piece of work: a step, and what it does. bytes counts those read and those written."""

    name: str
    step: Callable[[], object]
    operations: int | None = None
    bytes: int | None = None
    relative_error: float | None = None


def matmul_size(device: torch.device) -> int | None:
    """The size of the matrix products that memory has room for; None where it has for none."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return next((size for size in SIZES if ROOM * 3 * 4 * size**2 <= free), None)


def unsupported(name: str, device: torch.device) -> str | None:
    """Why this GPU does not run a body, None if it does."""
    new = MATMULS.get(name) in (BF16, TF32)
    if new and torch.cuda.get_device_capability(device) < AMPERE:
        return f"this GPU's tensor cores have no {MATMULS[name]} (Ampere and later have)"
    return None


@contextmanager
def ready_body(name: str, size: int, device: torch.device) -> Iterator[Body]:
    """A body with its inputs in memory and its arithmetic in force; freed at the end.

    Inputs are random normal: products of zeros draw less power and read 13 % too fast. The user's random state is not
    touched. Raises torch.OutOfMemoryError.
    """
    assert name in BODIES
    random = torch.Generator(device).manual_seed(0)
    with torch.no_grad(), torch.autocast("cuda", enabled=False):
        if name in MATMULS:
            arithmetic = MATMULS[name]
            with fp32_products("tf32" if arithmetic == TF32 else "ieee"):
                yield _product(name, size, _DTYPES[arithmetic], device, random)
        elif name == ELEMENTWISE:
            yield _elementwise(device, random)
        else:
            yield _copying(device, random)


def _product(name: str, size: int, dtype: torch.dtype, device: torch.device, random: torch.Generator) -> Body:
    a = torch.randn(size, size, dtype=dtype, device=device, generator=random)
    b = torch.randn(size, size, dtype=dtype, device=device, generator=random)
    out = torch.empty_like(a)
    error = _error(device, random) if dtype == torch.float32 else None
    return Body(name, lambda: torch.mm(a, b, out=out), operations=2 * size**3, relative_error=error)


def _elementwise(device: torch.device, random: torch.Generator) -> Body:
    """A sum, an error function and an exponential: what networks do between their products."""
    elements = STREAM_BYTES // 2 // (1 if matmul_size(device) == SIZES[0] else 8)
    a = torch.randn(elements, dtype=torch.float16, device=device, generator=random)
    b = torch.randn(elements, dtype=torch.float16, device=device, generator=random)
    out = torch.empty_like(a)

    def step() -> None:
        torch.add(a, b, out=out)
        torch.erf(out, out=out)
        torch.exp(out, out=out)

    return Body(ELEMENTWISE, step, bytes=(3 + 2 + 2) * 2 * elements)


def _copying(device: torch.device, random: torch.Generator) -> Body:
    size = STREAM_BYTES // (1 if matmul_size(device) == SIZES[0] else 8)
    source = torch.randn(size // 4, device=device, generator=random)
    target = torch.empty_like(source)
    return Body(COPY, lambda: target.copy_(source), bytes=2 * size)


def _error(device: torch.device, random: torch.Generator) -> float:
    """Relative error, in the Frobenius norm, of an FP32 product as this process computes it against FP64."""
    a = torch.randn(CHECK_SIZE, CHECK_SIZE, device=device, generator=random)
    exact = a.double() @ a.double()
    return float((torch.mm(a, a).double() - exact).norm() / exact.norm())
