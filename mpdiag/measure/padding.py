"""A matrix product of a layer by itself, as it is or padded or in a 16-bit type: its kernel time on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mpdiag.measure.products import Product
from mpdiag.measure.profiled import kernel_ms

CALLS = 10  # a variant; kernel durations of one product vary by a few percent
LARGEST_BYTES = 2**30  # of one product's matrices: it has to fit beside the arm's own model


def time_products(products: Sequence[Product], device: torch.device) -> dict[Product, float]:
    """Kernel time in ms of each product alone on a CUDA device; those too large or refused are left out."""
    fitting = [p for p in dict.fromkeys(products) if p.bytes <= LARGEST_BYTES]
    if not fitting:
        return {}
    times = kernel_ms([lambda p=p: body_of(p, device) for p in fitting], CALLS)  # type: ignore[misc] # a default binds
    return {product: ms for product, ms in zip(fitting, times, strict=True) if ms is not None}


def body_of(product: Product, device: torch.device) -> Callable[[], object]:
    """A call that computes the product on normal random numbers: zeros would read too fast."""
    dtype = getattr(torch, product.dtype)

    def matrix(rows: int, columns: int, by_columns: bool) -> torch.Tensor:
        shape = (columns, rows) if by_columns else (rows, columns)
        made = torch.randn(product.batch, *shape, device=device, dtype=dtype)
        return made.transpose(1, 2) if by_columns else made

    a = matrix(product.m, product.k, product.a_columns)
    b = matrix(product.k, product.n, product.b_columns)
    if product.batch == 1:
        return lambda: a[0] @ b[0]
    return lambda: torch.bmm(a, b)
