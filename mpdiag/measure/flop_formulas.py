"""FLOPs of single operators: torch's own formulas, and ours where torch has none or a wrong one. A multiply-add is two.

Wrong in torch (2.9 to 2.15): the weight gradient of a grouped convolution ignores its groups. Missing: recurrent
layers, matrix-vector products, attention on the CPU (until 2.15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
Formula = Callable[..., int]

RECURRENT = "aten._cudnn_rnn aten._cudnn_rnn_backward aten.mkldnn_rnn_layer aten.mkldnn_rnn_layer_backward".split()


def formulas() -> dict[Any, Formula]:
    """Formula by operator; each is called with the operator's arguments and `out_val`."""
    ours: dict[Any, Formula] = {
        aten.convolution_backward: _convolution_backward,
        aten._cudnn_rnn: _cudnn_rnn,
        aten._cudnn_rnn_backward: lambda *a, **k: 2 * _cudnn_rnn(*a, **k),
        aten.mkldnn_rnn_layer: _mkldnn_rnn,
        aten.mkldnn_rnn_layer_backward: lambda *a, **k: 2 * _mkldnn_rnn(*a, **k),
        aten.mv: lambda a, *_, **__: 2 * a.numel(),
        aten.addmv: lambda _, a, *__, **___: 2 * a.numel(),
        aten.dot: lambda a, *_, **__: 2 * a.numel(),
        aten.vdot: lambda a, *_, **__: 2 * a.numel(),
        aten.addbmm: lambda _, a, b, *__, **___: 2 * a.numel() * b.shape[-1],
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    return {**flop_registry, **ours}


def grouped_by_torch(*arguments: Any, **named: Any) -> int:
    """What torch's own formula says of a convolution's backward, to show beside the corrected count."""
    return int(flop_registry[aten.convolution_backward](*arguments, **named))


def _convolution_backward(
    grad: Any, x: Any, weight: Any, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool,
    _output_padding: Any, _groups: int, output_mask: Iterable[bool], *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Each gradient, of the input and of the weight, has the multiplications of the forward; a weight's second
    dimension is one group's channels, so they are counted by its numel.
    """
    points = x if transposed else grad
    forward = 2 * points.shape[0] * prod(points.shape[2:]) * weight.numel()
    return int(forward * sum(list(output_mask)[:2]))


def _cudnn_rnn(x: Any, weights: Any, *arguments: Any, **_: Any) -> int:
    """Every weight matrix of every layer and direction meets every token once."""
    features = weights[0].shape[1]
    tokens = x.numel() // features
    return int(2 * tokens * sum(w.numel() for w in weights if w.dim() == 2))


def _mkldnn_rnn(x: Any, of_input: Any, of_state: Any, *_: Any, **__: Any) -> int:
    """One layer in one direction."""
    tokens = x.numel() // of_input.shape[-1]
    return int(2 * tokens * (of_input.numel() + of_state.numel()))


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Scores, and the values under them; causal masks are counted in full."""
    return int(2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _attention_backward(_grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The scores again, and two products for each of the two of the forward."""
    pairs = 2 * prod(query.shape[:-1]) * key.shape[-2]
    return int(pairs * (3 * query.shape[-1] + 2 * value.shape[-1]))
