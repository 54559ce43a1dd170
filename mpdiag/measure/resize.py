"""A batch with more or fewer samples than the job gave: its own samples, cut or repeated in order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from mpdiag.target import Start
from mpdiag.target.batches import bytes_of, map_tensors, sample_axis, samples_in


@dataclass(frozen=True)
class Resized:
    """The batch; None with the reason where it cannot be resized."""

    batch: Any | None
    reason: str | None = None


def resized(batch: Any, samples: int, dim: int = 0) -> Resized:
    """The batch with `samples` samples (at least 1): every tensor and array whose dimension `dim` is the batch size.

    What has another size there is left as it is; what has fewer dimensions counts samples in its first. Repeated
    samples take as much memory and time as new ones.
    """
    own = samples_in(batch, dim)
    if not own:
        return Resized(None, "no tensor tells the batch size")
    reason = next(filter(None, (_refusal(leaf) for leaf in _leaves(batch))), None)
    if reason is not None:
        return Resized(None, reason)
    order = torch.arange(samples) % own

    def of_tensor(tensor: torch.Tensor) -> torch.Tensor:
        axis = sample_axis(tensor.shape, own, dim)
        return tensor if axis is None else tensor[(slice(None),) * axis + (order.to(tensor.device),)]

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            axis = sample_axis(leaf.shape, own, dim)
            return leaf.copy() if axis is None else np.take(leaf, order.numpy(), axis)
        return map_tensors(of_tensor, leaf)

    return Resized(pytree.tree_map(of_leaf, batch, is_leaf=_is_packed))


def halved(start: Start) -> Start | None:
    """The start with half the samples in every batch; None where one cannot be halved."""
    batches = []
    for batch in start.batches:
        own = samples_in(batch, start.batch_dim)
        made = resized(batch, own // 2, start.batch_dim) if own and own > 1 else Resized(None)
        if made.batch is None:
            return None
        batches.append(made.batch)
    return dataclasses.replace(start, batches=batches)


def largest_batch_of(start: Start) -> Any:
    """The batch with the most bytes: of sequences the longest, and so the one that decides what fits."""
    return max(start.batches, key=bytes_of)


def _is_packed(node: Any) -> bool:
    return isinstance(node, PackedSequence)


def _leaves(batch: Any) -> list[Any]:
    return pytree.tree_leaves(batch, is_leaf=_is_packed)


def _refusal(leaf: Any) -> str | None:
    """Why a leaf cannot be cut or repeated along its first dimension; None where it can or need not be."""
    if isinstance(leaf, torch.Tensor):
        if leaf.is_nested or leaf.layout != torch.strided:
            return "a sparse or nested tensor has no first dimension to cut or repeat"
        return None
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        values = [getattr(leaf, field.name) for field in dataclasses.fields(leaf)]
        return next(filter(None, (_refusal(inner) for value in values for inner in _leaves(value))), None)
    if isinstance(getattr(leaf, "data", None), dict) and hasattr(leaf, "to"):  # a transformers BatchEncoding
        return next(filter(None, (_refusal(inner) for inner in _leaves(leaf.data))), None)
    if isinstance(leaf, PackedSequence) or (callable(getattr(leaf, "to", None)) and hasattr(leaf, "__dict__")):
        return f"how to cut or repeat a {type(leaf).__name__} is not known"
    return None
