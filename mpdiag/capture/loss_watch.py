"""What the losses are made of: whether they are means or sums, and how large the targets are that they compare with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mpdiag.capture.input_watch import largest_finite

MEAN, SUM = "mean", "sum"
_REDUCTIONS = {1: MEAN, 2: SUM}  # what torch's own losses keep of their `reduction`
_MOST_NODES = 64  # a loss is put together from a few terms; beyond them begins the model
# between the loss and what it is a mean or sum of; a factor or divisor makes a mean of a sum, or a sum of a mean
_THROUGH = ("Squeeze", "Unsqueeze", "View", "Reshape", "Alias", "Clone", "ToCopy", "Add", "Sub", "Neg")
_DIFFERENCES = frozenset("mse_loss l1_loss smooth_l1_loss huber_loss sub __sub__ __rsub__ dist".split())


def reduction_of(loss: torch.Tensor) -> str | None:
    """ "mean" or "sum" by the graph of a loss; None where its terms differ or it is neither, as far as can be seen."""
    found = set(_reductions(loss.grad_fn))
    return found.pop() if len(found) == 1 else None


def _reductions(first: Any) -> Iterator[str | None]:
    todo, seen = [first], 0
    while todo:
        node, seen = todo.pop(), seen + 1
        if node is None:
            continue
        name = type(node).__name__
        kept = _REDUCTIONS.get(getattr(node, "_saved_reduction", None) or 0)
        if kept is not None:
            yield kept
        elif name.startswith("Mean"):
            inner = type(node.next_functions[0][0]).__name__ if node.next_functions else ""
            yield None if inner.startswith("Sum") else MEAN  # the mean over samples of a sum over the rest
        elif name.startswith("Sum"):
            yield SUM
        elif name.startswith(_THROUGH) and seen < _MOST_NODES:
            todo += [following for following, _ in node.next_functions]
        else:
            yield None


class TargetWatch:
    """abs_max: the largest finite magnitude that the model's output was compared with; None where none was seen.

    That is a floating tensor of the batch, as far as it is known, in a torch loss of regression or in a difference.
    """

    def __init__(self) -> None:
        self.abs_max: float | None = None

    def before(self, name: str, args: Any, kwargs: Any, of_the_batch: dict[int, torch.Tensor]) -> None:
        """A call is about to run."""
        if name not in _DIFFERENCES:
            return
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if not any(value.grad_fn is not None for value in given):
            return  # nothing of the model's is in it
        for value in given:
            if id(value) in of_the_batch and value.is_floating_point() and not value.requires_grad:
                largest = largest_finite(value)
                if largest is not None:
                    self.abs_max = max(largest, self.abs_max or 0.0)
