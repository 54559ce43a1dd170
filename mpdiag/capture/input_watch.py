"""How large the batch is where weights multiply it: pixels that were divided by 255 on the way are small there."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from mpdiag.target.batches import tensors_in

# what multiplies an input by weights, by the name that torch's function mode gives it -> how many arguments are inputs
_PRODUCTS = {
    **dict.fromkeys("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split(), 1),
    **dict.fromkeys("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split(), 1),
    "bilinear": 2,
    "multi_head_attention_forward": 3,
}
# these multiply anything; what they are given is an input where a parameter is the other side
_MATMULS = frozenset("matmul __matmul__ __rmatmul__ mm bmm mv einsum addmm baddbmm addbmm addmv".split())


class InputWatch:
    """Follows a batch through a step, from `follow`; targets and time stamps that no product is given are not inputs.

    abs_max: the largest finite magnitude among floating inputs of the first products; None where there was none.
    followed: by id, what is of the batch and no weight has touched.
    """

    def __init__(self) -> None:
        self.abs_max: float | None = None
        self.followed: dict[int, torch.Tensor] = {}  # the tensors too: an id is given again once its owner is gone

    def follow(self, batch: Any) -> None:
        """Take every tensor of a batch for an input."""
        self.followed = {id(tensor): tensor for tensor in tensors_in(batch)}

    def forget(self) -> None:
        """Let the tensors go."""
        self.followed.clear()

    def before(self, name: str, args: Any, kwargs: Any) -> None:
        """A call is about to run."""
        if self.followed and _by_weights(name, args, kwargs):
            given = [*args, *kwargs.values()]
            for tensor in pytree.tree_leaves(given[: _PRODUCTS.get(name, len(given))]):
                if id(tensor) in self.followed and tensor.is_floating_point():
                    self._measure(tensor)

    def after(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """A call gave this: an input still, unless weights have touched it."""
        if not self.followed or _by_weights(name, args, kwargs):
            return
        if any(id(value) in self.followed for value in pytree.tree_leaves((args, kwargs))):
            for tensor in pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and not tensor.requires_grad:
                    self.followed[id(tensor)] = tensor

    def _measure(self, tensor: torch.Tensor) -> None:
        largest = largest_finite(tensor)
        if largest is not None:
            self.abs_max = max(largest, self.abs_max or 0.0)


def largest_finite(tensor: torch.Tensor) -> float | None:
    """The largest finite magnitude; None where there is none, or for a tensor that cannot be read as it is."""
    with torch.no_grad():
        try:
            values = tensor.detach()
            values = values.values() if values.layout is not torch.strided else values
            finite = values[torch.isfinite(values)]
            return float(finite.abs().max()) if finite.numel() else None
        except Exception:  # a tensor of another sort, such as one of torch.func: not an input as it came
            return None


def _by_weights(name: str, args: Any, kwargs: Any) -> bool:
    return name in _PRODUCTS or (
        name in _MATMULS and any(isinstance(a, torch.nn.Parameter) for a in pytree.tree_leaves((args, kwargs)))
    )
