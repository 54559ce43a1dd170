"""The matrix products of a trace, by the shapes that torch recorded. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mpdiag.measure.trace_events import TracedOp

MULTIPLES = {"float16": 8, "bfloat16": 8, "float32": 4}  # 16 bytes, one load: NVIDIA's matrix multiplication guide
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_OPERANDS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1, "aten::_addmm_activation": 1}


@dataclass(frozen=True)
class Product:
    """One matrix product: (batch x) m x k times k x n. a_columns, b_columns: the operand lies column by column."""

    batch: int
    m: int
    n: int
    k: int
    dtype: str
    a_columns: bool = False
    b_columns: bool = False

    @property
    def odd(self) -> tuple[int, ...]:
        """The dimensions that are no multiple of what one load takes."""
        multiple = MULTIPLES.get(self.dtype, 1)
        return tuple(d for d in (self.m, self.n, self.k) if d % multiple)

    @property
    def padded(self) -> Product:
        """The same with every dimension rounded up."""
        multiple = MULTIPLES.get(self.dtype, 1)
        m, n, k = (-(-d // multiple) * multiple for d in (self.m, self.n, self.k))
        return replace(self, m=m, n=n, k=k)

    @property
    def bytes(self) -> int:
        """Of its three matrices."""
        sizes = self.m * self.k + self.k * self.n + self.m * self.n
        return self.batch * sizes * _BYTES.get(self.dtype, 8)

    @property
    def flops(self) -> int:
        """A multiply-add is two."""
        return 2 * self.batch * self.m * self.n * self.k


def product_of(op: TracedOp | None) -> Product | None:
    """The matrix product that an operator computes, None for any other operator and for unfit shapes."""
    first = None if op is None else _OPERANDS.get(op.name)
    if op is None or first is None or op.dtype not in MULTIPLES or len(op.dims) < first + 2:
        return None
    a, b = op.dims[first : first + 2]
    if len(a) != len(b) or len(a) not in (2, 3) or a[-1] != b[-2] or not all((*a, *b)):
        return None
    strides = op.strides[first : first + 2] if len(op.strides) >= first + 2 else ((), ())
    batch = a[0] if len(a) == 3 else 1
    return Product(batch, a[-2], b[-1], a[-1], op.dtype, _by_columns(strides[0]), _by_columns(strides[1]))


def _by_columns(strides: tuple[int, ...]) -> bool:
    return len(strides) >= 2 and strides[-2] == 1 and strides[-1] > 1
