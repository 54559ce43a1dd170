"""Which elements of a tensor are neighbours in a block: its rows, and where they lie in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from mpdiag.blocks import CHANNELS, FEATURES, FILTER, TAPS
from mpdiag.capture.layout import layout_of

FEATURE_DIMS = 3  # up to (batch, tokens, features) the last dimension is what the next product sums over
_FEATURES = ("Linear", "LayerNorm", "RMSNorm", "Embedding", "Attention", "Transformer", "RNN", "LSTM", "GRU")
_SPATIAL = re.compile(r"([123])d$")  # Conv2d, BatchNorm2d, a LayerNorm2d of images: channels, then that many dimensions


@dataclass(frozen=True)
class Rows:
    """`count` elements in the order of `sizes` and `strides` (in elements, outermost first), cut every `length`.

    along: what a row is, in words.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    length: int
    along: str = FEATURES

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


def rows_of(tensor: torch.Tensor, weight: bool, module_type: str = "") -> Rows:
    """The rows of a strided tensor that is not empty, by what the product sums over that reads it.

    module_type: the class that gives the tensor, or owns the weight; without it more than three dimensions are images.
    A convolution's weight has a row for each filter, its channels innermost; other weights one for each index of the
    first dimension. Where it is not known what is summed over, the last dimension is taken, of one channel too.
    """
    if weight:
        return _weight_rows(tensor, module_type)
    place = _channels(tensor, module_type)
    if place is None or tensor.shape[place] == 1:
        return Rows(*_merged(tensor.shape, tensor.stride()), tensor.shape[-1] if tensor.dim() else 1)
    moved = tensor.movedim(place, -1)
    return Rows(*_merged(moved.shape, moved.stride()), moved.shape[-1], CHANNELS)


def _channels(tensor: torch.Tensor, module_type: str) -> int | None:
    """The dimension of images' channels; None for features, which are the last."""
    spatial = _SPATIAL.search(module_type)
    if "BatchNorm" in module_type and tensor.dim() == 2:  # (batch, features): it takes no signal without a batch
        return None
    if spatial and tensor.dim() > int(spatial[1]):
        return tensor.dim() - 1 - int(spatial[1])
    if tensor.dim() <= FEATURE_DIMS or any(name in module_type for name in _FEATURES):
        return None
    return 1


def _weight_rows(tensor: torch.Tensor, module_type: str) -> Rows:
    if tensor.dim() < 2:
        return Rows(*_merged(tensor.shape, tensor.stride()), tensor.numel())
    if tensor.dim() > 2 and "Conv" in module_type:
        moved = tensor.movedim(0 if "Transpose" in module_type else 1, -1)  # (filters, taps, channels)
        return Rows(*_merged(moved.shape, moved.stride()), moved.numel() // moved.shape[0], TAPS)
    length, along = tensor.numel() // tensor.shape[0], FEATURES if tensor.dim() == 2 else FILTER
    layout = layout_of(tensor)
    if not layout.flat or layout.times > 1:
        return Rows(*_merged(tensor.shape, tensor.stride()), length, along)
    outermost = tensor.shape[0] == 1 or tensor.stride(0) == length
    return Rows((tensor.numel(),), (1,), length if outermost else tensor.numel(), along)


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
