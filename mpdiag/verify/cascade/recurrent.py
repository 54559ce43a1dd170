"""nn.LSTM, nn.GRU and nn.RNN step by step in FP32, rounding what cuDNN stores in FP16 between time steps.

The gradients of the gates are what weight gradients are sums of, and each is far smaller than its sum. Which others are
stored was found by comparing which gradients of an LSTM become zero (H100, cuDNN 9.19): those of the hidden
state through its weights and those of the cell too, not the weight gradients' partial sums. An nn.GRU also stores the
sum of all that comes to its hidden state; an nn.RNN does as an nn.LSTM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from mpdiag.verify.cascade.rounding import cast, store, to_half

KINDS = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
STEPS_AT_MOST = 8192
"""Time steps times layers times directions: some thirty small kernels each, a few seconds on an H100. Longer ones go
through torch's own operator, and what lies between their time steps is not rounded."""


@dataclass
class _Unrolled:
    """One call of torch's operator. log2_scale: of the loss; None: nothing is rounded."""

    kind: str
    log2_scale: int | None
    dropout: float
    last_h: list[torch.Tensor] = field(default_factory=list)
    last_c: list[torch.Tensor] = field(default_factory=list)

    def layer(
        self, data: torch.Tensor, sizes: Sequence[int], h: torch.Tensor, c: torch.Tensor | None,
        weights: Sequence[torch.Tensor], backwards: bool,
    ) -> torch.Tensor:  # fmt: skip
        """Outputs of one layer in one direction; data: rows of all steps, sizes: how many of them a step has."""
        biases = weights[2:4] if len(weights) >= 4 else (None, None)
        project = weights[-1] if len(weights) in (3, 5) else None
        inputs = self._gates(functional.linear(self._operand(data), self._operand(weights[0]), biases[0]))
        steps = list(enumerate(inputs.split(list(sizes))))
        outputs: list[torch.Tensor] = [data] * len(steps)
        recurrent = self._operand(weights[1])
        for step, own in reversed(steps) if backwards else steps:
            rows = len(own)  # sequences are sorted by length: those that run now come first
            before = h[:rows]
            held = None if c is None else c[:rows]
            gates = functional.linear(self._operand(before), recurrent, biases[1])
            after, cell = self._step(own, gates, before, held)
            if project is not None:
                after = functional.linear(self._operand(after), self._operand(project))
            self._kept(after)
            outputs[step] = after
            h = after if rows == len(h) else torch.cat([after, h[rows:]])
            if c is not None and cell is not None:
                c = cell if rows == len(c) else torch.cat([cell, c[rows:]])
        self.last_h.append(h)
        if c is not None:
            self.last_c.append(c)
        return torch.cat(outputs)

    def _step(
        self, own: torch.Tensor, gates: torch.Tensor, h: torch.Tensor, c: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if c is not None:
            i, f, g, o = self._gates(own + gates).chunk(4, -1)
            i, f, g, o = (self._kept(gate) for gate in (i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()))
            cell = f * c + i * g
            if self.log2_scale is not None:
                store(cell, self.log2_scale)
            return o * cell.tanh(), cell
        if self.kind == "gru":
            (r, z, n), (hr, hz, hn) = own.chunk(3, -1), self._gates(gates).chunk(3, -1)
            reset, keep = self._kept((r + hr).sigmoid()), self._kept((z + hz).sigmoid())
            new = self._kept((n + reset * hn).tanh())
            return self._operand(new + keep * (h - new)), None
        total = self._gates(own + gates)
        return (total.tanh() if self.kind == "rnn_tanh" else total.relu()), None

    def _operand(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.log2_scale is None else cast(tensor, self.log2_scale)

    def _gates(self, gates: torch.Tensor) -> torch.Tensor:
        """Gates before their sigmoid or tanh: their gradients are stored in FP16, they themselves are not rounded."""
        return gates if self.log2_scale is None else cast(gates, self.log2_scale, value=False)

    def _kept(self, value: torch.Tensor) -> torch.Tensor:
        """A value rounded where it lies; its gradient goes on within the kernel."""
        if self.log2_scale is not None:
            value.data.copy_(to_half(value.data))
        return value


def unrolled(kind: str, args: Sequence[Any], log2_scale: int | None) -> Any:
    """What torch.lstm, torch.gru, torch.rnn_tanh or torch.rnn_relu gives for its arguments, dense or packed.

    log2_scale: of the loss, with which gradients between time steps are rounded to FP16; None: nothing is rounded.
    None where it would take more than STEPS_AT_MOST. Dropout between layers draws from the global generator.
    """
    packed = isinstance(args[1 if kind == "lstm" else 2], torch.Tensor)
    data, rest = args[0], list(args[1:])
    batch_first = False if packed else rest.pop()
    sizes = rest.pop(0).tolist() if packed else None
    hx, weights, _, layers, dropout, training, both = rest
    if sizes is None:
        data = data.transpose(0, 1) if batch_first else data
        sizes = [data.shape[1]] * data.shape[0]
    directions = 2 if both else 1
    if len(sizes) * layers * directions > STEPS_AT_MOST or not sizes:
        return None
    shape = data.shape[:-1]
    rows = data.reshape(-1, data.shape[-1])
    h0, c0 = hx if kind == "lstm" else (hx, None)
    run = _Unrolled(kind, log2_scale, dropout if training else 0.0)
    each = len(weights) // (layers * directions)
    for layer in range(layers):
        found = []
        for way in range(directions):
            at = layer * directions + way
            own = weights[at * each : (at + 1) * each]
            found.append(run.layer(rows, sizes, h0[at], None if c0 is None else c0[at], own, way == 1))
        rows = torch.cat(found, -1)
        if run.dropout and layer < layers - 1:
            rows = functional.dropout(rows, run.dropout)
    output = rows if packed else rows.reshape(*shape, -1)
    output = output.transpose(0, 1) if batch_first else output
    states = (run.last_h,) if kind != "lstm" else (run.last_h, run.last_c)
    return (output, *(torch.stack(state) for state in states))
