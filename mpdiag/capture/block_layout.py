"""Which elements of a tensor are neighbours in a block: its rows, and where they lie in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpdiag.capture.layout import layout_of

FEATURE_DIMS = 3  # up to (batch, tokens, features) the last dimension is what the next product sums over


@dataclass(frozen=True)
class Rows:
    """`count` elements in the order of `sizes` and `strides` (in elements, outermost first), cut every `length`."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    length: int

    @property
    def count(self) -> int:
        """How many elements there are; one that is expanded counts each time."""
        product = 1
        for size in self.sizes:
            product *= size
        return product

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements in one dimension, row after row: a view where they are one run of memory, else a copy."""
        return tensor.as_strided(self.sizes, self.strides).reshape(-1)


def rows_of(tensor: torch.Tensor, weight: bool) -> Rows:
    """The rows of a strided tensor that is not empty.

    A weight and a tensor of more than three dimensions (images) have one row for each index of the first dimension, in
    the order of memory where that has no gaps; where the first dimension is not the outermost there, it is one row.
    Others have the last dimension as their rows.
    """
    if tensor.dim() < 2:
        return Rows(*_merged(tensor.shape, tensor.stride()), tensor.numel())
    if not weight and tensor.dim() <= FEATURE_DIMS:
        return Rows(*_merged(tensor.shape, tensor.stride()), tensor.shape[-1])
    length = tensor.numel() // tensor.shape[0]
    layout = layout_of(tensor)
    if not layout.flat or layout.times > 1:
        return Rows(*_merged(tensor.shape, tensor.stride()), length)
    outermost = tensor.shape[0] == 1 or tensor.stride(0) == length
    return Rows((tensor.numel(),), (1,), length if outermost else tensor.numel())


def _merged(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same order of the same elements, in as few dimensions as possible."""
    sizes: list[int] = []
    steps: list[int] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if sizes and steps[-1] == stride * size:
            sizes[-1] *= size
            steps[-1] = stride
        else:
            sizes.append(size)
            steps.append(stride)
    return (tuple(sizes), tuple(steps)) if sizes else ((1,), (1,))
