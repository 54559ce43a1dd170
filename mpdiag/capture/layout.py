"""How a tensor lies in memory: which of its elements a count must read, and how often each one stands for itself.

The order of elements does not matter to a count. A dense tensor in any memory order is one flat run, an expanded one
a smaller tensor counted several times; only what has gaps has to be read by index.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


@dataclass(frozen=True)
class Layout:
    """The distinct elements of a tensor: `sizes` and `strides` in elements, outermost first; each counts `times`."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    times: int = 1

    @property
    def flat(self) -> bool:
        """Whether they are one run of neighbouring elements."""
        return self.strides == (1,)

    @property
    def count(self) -> int:
        """How many distinct elements there are."""
        product = 1
        for size in self.sizes:
            product *= size
        return product


def layout_of(tensor: torch.Tensor) -> Layout:
    """The layout of a strided tensor, with as few dimensions as it can be described by."""
    if tensor.is_contiguous():
        return Layout((tensor.numel(),), (1,))
    sizes: list[int] = []
    strides: list[int] = []
    times = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True), reverse=True):
        if size == 1:
            continue
        if stride == 0:
            times *= size
        elif strides and strides[-1] == stride * size:
            sizes[-1] *= size
            strides[-1] = stride
        else:
            sizes.append(size)
            strides.append(stride)
    return Layout(tuple(sizes), tuple(strides), times) if sizes else Layout((1,), (1,), times)


def real_part(tensor: torch.Tensor) -> torch.Tensor | None:
    """The real floating-point numbers of a tensor, as a tensor that shares its memory; None for other types.

    Complex tensors give both parts, sparse ones their stored values, nested ones their elements. Signs do not count,
    so a negated or conjugated view is read as it lies.
    """
    tensor = tensor.detach()
    if tensor.is_nested:
        tensor = (
            tensor.values() if tensor.layout == torch.jagged else torch.cat([t.reshape(-1) for t in tensor.unbind()])
        )
    if tensor.layout != torch.strided:
        if tensor.layout not in _SPARSE:
            return None
        tensor = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.conj() if tensor.is_conj() else tensor)
    return tensor if tensor.is_floating_point() else None


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in one dimension: a view where they are one run of memory, in the order of memory, else a copy."""
    layout = layout_of(tensor)
    if layout.flat and layout.times == 1:
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)
