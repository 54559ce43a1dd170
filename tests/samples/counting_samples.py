"""Values to count, and the row of counts that a table gives for them."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

from mpdiag.capture.columns import Row
from mpdiag.capture.counting import CountTable
from mpdiag.capture.kernel import Update
from mpdiag.capture.layout import real_part

CPU = torch.device("cpu")
FP32_VALUES = st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=50)

quick = settings(deadline=None)  # torch's first call of a kind may take longer than hypothesis allows


def row_of(*tensors: torch.Tensor) -> Row:
    """One row after adding each tensor to it."""
    table = CountTable(CPU)
    for tensor in tensors:
        values = real_part(tensor)
        assert values is not None
        table.add(0, values)
    return table.take()[0]


def add_update(table, row, before, after, gradient=None):
    table.add_updates([Update(row, before, after, gradient)])


def random_bits(count: int, seed: int) -> torch.Tensor:
    """Random FP32 bit patterns: all exponents, subnormals, infinities (rare), quiet and signalling NaNs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)
