"""Batches of any nesting: dataclasses, dicts, tuples, whatever torch's pytree knows."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from mpdiag.errors import UsageError

MOST_DIMS = 8  # video has five; a larger BATCH_DIM was mistyped
SHOWN_SIZES = 4
LEAST_TIMED = 3  # batches: the first may start workers, and one alone may be any


def map_tensors(fn: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    """The same structure with `fn` applied to every tensor; other leaves are passed through.

    Objects with a `.to` method of their own (a PackedSequence, a transformers BatchEncoding, a graph batch) and
    dataclasses are copied, so that nothing the user holds is changed.
    """

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return fn(value)
        if isinstance(value, np.ndarray):  # the user's code may write into it
            return value.copy()
        if isinstance(value, PackedSequence):  # a namedtuple to pytree, yet its lengths must stay on the CPU
            orders = (None if o is None else fn(o) for o in (value.sorted_indices, value.unsorted_indices))
            return PackedSequence(fn(value.data), value.batch_sizes, *orders)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            mapped = copy.copy(value)
            for item in dataclasses.fields(value):
                object.__setattr__(mapped, item.name, map_tensors(fn, getattr(value, item.name)))
            return mapped
        if isinstance(getattr(value, "data", None), dict) and hasattr(value, "to"):
            mapped = copy.copy(value)
            mapped.data = {key: map_tensors(fn, item) for key, item in value.data.items()}
            return mapped
        if callable(getattr(value, "to", None)) and hasattr(value, "__dict__"):
            mapped = copy.copy(value)
            for key, item in vars(value).items():
                if isinstance(item, torch.Tensor):
                    setattr(mapped, key, fn(item))
            return mapped
        return value

    return pytree.tree_map(leaf, batch, is_leaf=_packed)


def _packed(node: Any) -> bool:
    return isinstance(node, PackedSequence)


def tensors_in(value: Any, _inside: frozenset[int] = frozenset()) -> Iterator[torch.Tensor]:
    """Every tensor in a nested value: pytree nodes, dataclasses, and objects that keep tensors in attributes.

    An object that holds itself is entered once.
    """
    for leaf in pytree.tree_leaves(value, is_leaf=_packed):
        if id(leaf) in _inside:
            continue
        inside = _inside | {id(leaf)}
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, PackedSequence):
            yield leaf.data
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for item in dataclasses.fields(leaf):
                yield from tensors_in(getattr(leaf, item.name), inside)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, torch.nn.Module | type):
            for item in vars(leaf).values():
                if isinstance(item, torch.Tensor):
                    yield item
                elif isinstance(item, dict | list | tuple):
                    yield from tensors_in(item, inside)


def bytes_of(batch: Any) -> int:
    """Bytes of all tensors in a batch."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(batch))


def samples_in(batch: Any, dim: int = 0) -> int | None:
    """The batch size: dimension `dim` (a target's BATCH_DIM) of the first tensor that has it."""
    return next((int(tensor.shape[dim]) for tensor in tensors_in(batch) if tensor.dim() > dim), None)


def sample_axis(shape: Sequence[int], samples: int, dim: int = 0) -> int | None:
    """The dimension of a tensor that counts samples; None where it has none.

    It is `dim`; of a tensor with too few dimensions, such as the labels beside time-first inputs, the first.
    """
    axis = dim if len(shape) > dim else 0
    return axis if shape and shape[axis] == samples else None


def batch_dim_of(namespace: dict[str, Any], source: str) -> int | None:
    """`BATCH_DIM`: the dimension of a batch's tensors that counts samples, 1 for time-first; None where it is not said.

    Raises UsageError `target-setting` for anything but a small whole number.
    """
    given = namespace.get("BATCH_DIM")
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < MOST_DIMS):
        shown = given if isinstance(given, int) and abs(given) < 10**9 else f"of type {type(given).__name__}"
        raise UsageError(
            "target-setting",
            f"{source}: BATCH_DIM is {shown}, which is no dimension of a tensor",
            "BATCH_DIM = 1 for batches that are time-first; without it the first dimension counts samples",
        )
    return given


def batch_notes(batch: Any, said_dim: int | None) -> tuple[str, ...]:
    """What is doubtful about the batch size: tensors that disagree, where the target says no BATCH_DIM."""
    if said_dim is not None:
        return ()
    firsts = list(dict.fromkeys(int(tensor.shape[0]) for tensor in tensors_in(batch) if tensor.dim() > 0))
    if len(firsts) < 2:
        return ()
    told = ", ".join(map(str, firsts[:SHOWN_SIZES])) + (", ..." if len(firsts) > SHOWN_SIZES else "")
    return (
        f"the tensors of a batch differ in their first dimension ({told}): {firsts[0]} was taken as the batch size; if "
        "that is not so, say which dimension counts samples (BATCH_DIM = 1 for time-first batches)",
    )


def draw(source: Iterable[Any], count: int, limit_bytes: int) -> tuple[list[Any], float | None]:
    """(the first `count` batches, or as many as there are or as fit in `limit_bytes`, at least one if any; mean ms).

    A source that ends is gone through again, as an epoch loop does, so that a loader that shuffles gives its samples in
    another order. One whose next epoch begins as its first did (a list), or is empty (a generator), gives nothing new.
    The milliseconds are what the source takes for a batch, the first of an epoch left out, with which it may start
    workers; None for fewer than LEAST_TIMED batches.
    """
    kept: list[Any] = []
    used, taken, timed = 0, 0.0, 0
    batches, fresh = iter(source), True  # fresh: the next batch is an epoch's first
    while len(kept) < count and used < limit_bytes:
        began = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            if fresh:
                break
            batches, fresh = iter(source), True
            continue
        if fresh and kept and _same_values(batch, kept[0]):
            break
        if not fresh:
            taken, timed = taken + time.perf_counter() - began, timed + 1
        fresh = False
        kept.append(_copied(batch))
        used += bytes_of(batch)
    return kept, 1000 * taken / timed if timed >= LEAST_TIMED - 1 else None


class Replay:
    """An iterator's batches from the first on each time they are asked for, though it gives them once.

    given: what it gave before, already copied.
    """

    def __init__(self, batches: Iterator[Any], given: Iterable[Any] = ()) -> None:
        self._batches = batches
        self._given = list(given)

    def __iter__(self) -> Iterator[Any]:
        yield from list(self._given)
        for batch in self._batches:
            self._given.append(_copied(batch))
            yield batch


def _copied(batch: Any) -> Any:
    """The batch with tensors of its own, for a loader may reuse one buffer for every batch; they ask for gradients
    where the loader's do, as points that a loss is differentiated at."""
    return map_tensors(lambda t: t.detach().clone().requires_grad_(t.requires_grad), batch)


def _same_values(one: Any, other: Any) -> bool:
    """Whether two batches hold equal tensors; also where there is none, or none that can be compared."""
    here, there = list(tensors_in(one)), list(tensors_in(other))
    try:
        return len(here) == len(there) and all(map(torch.equal, here, there))
    except RuntimeError:  # sparse and quantized tensors have no equality
        return True
