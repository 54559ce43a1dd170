"""Counting exponents: one row of a device table per tensor, no synchronization, copied to the host once a step.

On a CUDA device the fused kernel of kernel.py counts; the portable path, in torch alone, counts everywhere else and
whatever the kernel does not read, to the same integers. Bits decide, never log2: float32 log2 of the value just below
a power of two rounds up to the next integer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpdiag.capture import kernel
from mpdiag.device.cuda_program import CudaFunction
from mpdiag.histogram import ExponentHistogram

LOWEST = -149  # log2 of the smallest FP32 subnormal
BINS = 277  # binades -149..127
INFS, ZEROS, NANS = BINS, BINS + 1, BINS + 2  # codes beyond the binades
CODES = BINS + 3
ABS_MAX, ABS_MIN, STAGNANT_FP16, STAGNANT_BF16, WANTED = range(CODES, CODES + 5)
WIDTH = CODES + 5

_INF_BITS = 0x7F800000
_FIRST_NORMAL_BITS = 0x00800000
_NORMAL_SHIFT = 22  # exponent field 1 (2^-126) has code 23


def values_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The real floating-point elements of a tensor as a flat view where one exists; None for other types.

    Complex tensors give both parts, sparse ones their stored values. A dense tensor in any memory order is read
    flat, without a copy: order does not matter to a count.
    """
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point():
        return None
    tensor = tensor.resolve_neg()
    if not tensor.is_contiguous() and _dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def _dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps or overlaps, in whatever order."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def magnitude_bits(values: torch.Tensor) -> torch.Tensor:
    """The bits of |x| as FP32, int32. FP16 and BF16 widen exactly; FP64 is rounded to FP32 first."""
    return values.float().view(torch.int32) & 0x7FFFFFFF


def codes(bits: torch.Tensor) -> torch.Tensor:
    """The code of each element: its binade's index, or INFS, ZEROS, NANS. int32, same shape."""
    subnormal = (bits.float().view(torch.int32) >> 23) - 127  # an integer below 2^23 is exact as a float
    code = torch.where(bits < _FIRST_NORMAL_BITS, subnormal, (bits >> 23) + _NORMAL_SHIFT)
    code = torch.where(bits == 0, ZEROS, code)
    return torch.where(bits > _INF_BITS, NANS, code)


def count_codes(bits: torch.Tensor) -> torch.Tensor:
    """int64[CODES] counts of `codes(bits)`, on the tensor's device, without synchronizing on a GPU."""
    if bits.device.type == "cpu":
        return _count_on_cpu(bits)
    if torch.are_deterministic_algorithms_enabled():  # histc refuses to run then, though integers cannot differ
        ones = torch.ones((), dtype=torch.int64, device=bits.device).expand(bits.numel())
        return torch.zeros(CODES, dtype=torch.int64, device=bits.device).scatter_add_(0, codes(bits).long(), ones)
    # with min 0 and max == bins each integer falls into the bin of its own value
    return torch.histc(codes(bits), bins=CODES, min=0, max=CODES).long()


def _count_on_cpu(bits: torch.Tensor) -> torch.Tensor:
    """The same counts with one pass over the exponent field; the rare elements are looked at only if there are any."""
    fields = torch.bincount(bits >> 23, minlength=256)
    counted = torch.zeros(CODES, dtype=torch.int64)
    counted[23:BINS] = fields[1:255]
    for field in (0, 255):
        if fields[field]:
            rare = bits[(bits >> 23) == field]
            counted += torch.bincount(codes(rare), minlength=CODES)
    return counted


@dataclass(frozen=True)
class Row:
    """One tensor's counts of one step, on the host."""

    histogram: ExponentHistogram
    abs_max: float
    abs_min: float
    stagnant_fp16: int
    stagnant_bf16: int
    wanted: int


def empty_table(rows: int, device: torch.device) -> torch.Tensor:
    """A table in which nothing has been counted."""
    table = torch.zeros(rows, WIDTH, dtype=torch.int64, device=device)
    table[:, ABS_MIN] = _INF_BITS
    return table


class CountTable:
    """Rows of counts on one device. `add` may be called any number of times for a row within a step."""

    def __init__(self, device: torch.device, rows: int = 512, portable: bool = False) -> None:
        self.device = device
        self.counted_by = "torch"
        self._table = empty_table(rows, device)
        self._later: list[kernel.Entry] = []
        self._kernel: CudaFunction | None = None
        if device.type == "cuda" and not portable:
            try:
                self._kernel = kernel.kernel_for(device.index or 0, _KERNEL_CODES)
                self.counted_by = "CUDA kernel"
            except RuntimeError as error:
                self.counted_by = f"torch ({error})"

    def add(self, row: int, values: torch.Tensor) -> None:
        """Count the elements of a flat real tensor into a row."""
        self._reach(row)
        if self._kernel is not None and kernel.fits(values):
            kernel.launch(self._kernel, [(row, values)], self._table)
        elif values.numel():
            self._add_portably(row, values)

    def add_later(self, row: int, values: torch.Tensor) -> None:
        """The same for a tensor that stays as it is until `add_waiting`: many small ones share one launch."""
        if self._kernel is None or not kernel.fits(values):
            self.add(row, values)
            return
        self._reach(row)
        self._later.append((row, values))
        if len(self._later) == kernel.MAX_SEGMENTS:
            self.add_waiting()

    def add_waiting(self) -> None:
        """Count what `add_later` has put off."""
        if self._later and self._kernel is not None:
            kernel.launch(self._kernel, self._later, self._table)
            self._later.clear()

    def _reach(self, row: int) -> None:
        if row >= len(self._table):
            self._table = torch.cat([self._table, empty_table(max(len(self._table), row + 1), self.device)])

    def _add_portably(self, row: int, values: torch.Tensor) -> None:
        bits = magnitude_bits(values)
        counts = self._table[row]
        counts[:CODES] += count_codes(bits)
        finite = torch.where(bits < _INF_BITS, bits, 0)
        nonzero = torch.where(bits > 0, bits, _INF_BITS)
        counts[ABS_MAX] = torch.maximum(counts[ABS_MAX], finite.amax().long())
        counts[ABS_MIN] = torch.minimum(counts[ABS_MIN], nonzero.amin().clamp(max=_INF_BITS).long())

    def add_update(
        self, row: int, before: torch.Tensor, after: torch.Tensor, gradient: torch.Tensor | None = None
    ) -> None:
        """Count the update after - before, and how many of the wanted ones 16-bit weights do not feel.

        An update is wanted where it is not zero. Weights that are 16-bit already have lost the small ones, so there
        it is wanted where the gradient is not zero, and lost where the weight stayed.
        """
        update = after.float() - before.float()
        self.add(row, update)
        full = before.dtype in (torch.float32, torch.float64)
        wanted = update if full else gradient
        if wanted is None:
            return
        for column, dtype in ((STAGNANT_FP16, torch.float16), (STAGNANT_BF16, torch.bfloat16)):
            if full:
                stored = before.to(dtype)
                moved = (stored.float() + update).to(dtype)
                self._table[row, column] += ((moved == stored) & (update != 0)).sum()
            elif before.dtype == dtype:
                self._table[row, column] += ((update == 0) & (wanted != 0)).sum()
        self._table[row, WANTED] += (wanted != 0).sum()

    def take_counts(self) -> torch.Tensor:
        """The table since the last call, int64 [rows, WIDTH] on the host, by one transfer; it starts anew."""
        self.add_waiting()
        host = self._table.cpu() if self.device.type != "cpu" else self._table
        self._table = empty_table(len(self._table), self.device)
        return host

    def take(self) -> dict[int, Row]:
        """The rows counted since the last call."""
        host = self.take_counts()
        used = (host[:, :CODES].sum(dim=1) > 0).nonzero().flatten().tolist()
        return {row: row_of(host[row]) for row in used}


_KERNEL_CODES = (
    ("CODE_INFS", INFS),
    ("CODE_ZEROS", ZEROS),
    ("CODE_NANS", NANS),
    ("COLUMN_ABS_MAX", ABS_MAX),
    ("COLUMN_ABS_MIN", ABS_MIN),
    ("TABLE_WIDTH", WIDTH),
)
"""What the kernel has to know of the table, as macros."""


def row_of(counts: torch.Tensor) -> Row:
    """One row of a host table."""
    numbers = counts.tolist()
    ends = torch.tensor(numbers[ABS_MAX : ABS_MIN + 1], dtype=torch.int32).view(torch.float32).tolist()
    return Row(
        ExponentHistogram(LOWEST, tuple(numbers[:BINS]), numbers[ZEROS], numbers[INFS], numbers[NANS]),
        abs_max=ends[0],
        abs_min=ends[1],
        stagnant_fp16=numbers[STAGNANT_FP16],
        stagnant_bf16=numbers[STAGNANT_BF16],
        wanted=numbers[WANTED],
    )
