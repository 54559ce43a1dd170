"""The CUDA kernels that count exponents: compiled at run time, launched without synchronizing.

The route is cuda-bindings (NVIDIA's own Python package for NVRTC and the driver API), because torch's CUDA wheels
require it: nothing to install, no compiler on the user's machine, public API. cuda-core would be one more dependency
for a thin layer over the same calls; torch.cuda._compile_kernel is private; torch.utils.cpp_extension needs nvcc and a
minute; Triton's histogram stays at 40 to 60 % of memory bandwidth. Where any step fails, counting takes the portable
torch path, which gives the same integers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch

from mpdiag.capture import columns
from mpdiag.capture.layout import Layout, layout_of
from mpdiag.device.cuda_program import CudaFunction, compile_program

THREADS = 512
BLOCKS_PER_MULTIPROCESSOR = 2
LOADS_IN_FLIGHT = 4  # vectors a thread asks for before it counts them
MAX_SEGMENTS = 96  # 40 bytes each: a kernel's parameters may take 4 KiB
MAX_DIMS = 6
ALIGNMENT = 16  # bytes: one vector load
GROUP_BYTES = 128  # the grain in which blocks share the work
SHARED_BYTES = 32 * THREADS * 4 + 128 * 8 + (columns.CODES + 2) * 4  # counters, totals, beyond the window, ends

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_SEGMENT = struct.Struct("<qqqqihh")
_SEGMENTS_BYTES = _SEGMENT.size * MAX_SEGMENTS
_AFTER_SEGMENTS = struct.Struct("<iiqQ")  # segment_count, padding, groups, table
_STRIDED = struct.Struct(f"<qqq{2 * MAX_DIMS}qiii4xQ")
_MOVED = struct.Struct("<QQQqii")
_MOVES_BYTES = _MOVED.size * MAX_SEGMENTS


@dataclass(frozen=True)
class Entry:
    """A tensor to be counted into a row."""

    row: int
    tensor: torch.Tensor
    layout: Layout


@dataclass(frozen=True)
class Update:
    """A run of a parameter's elements before and after a step, each flat; the gradient matters to 16-bit weights."""

    row: int
    before: torch.Tensor
    after: torch.Tensor
    gradient: torch.Tensor | None


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels of one device."""

    exponents: CudaFunction
    strided: CudaFunction
    updates: CudaFunction
    resident_blocks: int

    def count(self, entries: Sequence[Entry], table: torch.Tensor) -> None:
        """Count tensors into the rows of an int64 table, on the current stream."""
        flat = [entry for entry in entries if entry.layout.flat]
        for first in range(0, len(flat), MAX_SEGMENTS):
            self._count_flat(flat[first : first + MAX_SEGMENTS], table)
        for entry in entries:
            if not entry.layout.flat:
                self._count_strided(entry, table)

    def _count_flat(self, entries: Sequence[Entry], table: torch.Tensor) -> None:
        packed = bytearray(_SEGMENTS_BYTES + _AFTER_SEGMENTS.size)
        groups = used = 0
        for entry in entries:
            tensor, count = entry.tensor, entry.layout.count
            if count == 0:
                continue
            size = tensor.element_size()
            address = tensor.data_ptr()
            before = min(count, -address % ALIGNMENT // size)  # elements ahead of the first 16-byte boundary
            aligned, rest = address + before * size, count - before
            place = (aligned, rest, groups, entry.layout.times, entry.row, TYPES[tensor.dtype], before)
            _SEGMENT.pack_into(packed, used * _SEGMENT.size, *place)
            groups += max(1, -(-rest * size // GROUP_BYTES))
            used += 1
        if used:
            _AFTER_SEGMENTS.pack_into(packed, _SEGMENTS_BYTES, used, 0, groups, table.data_ptr())
            blocks = min(self.resident_blocks, -(-groups * GROUP_BYTES // (ALIGNMENT * THREADS)))
            offsets = (0, _SEGMENTS_BYTES, _SEGMENTS_BYTES + 8, _SEGMENTS_BYTES + 16)
            self.exponents.launch((blocks, 1), THREADS, bytes(packed), offsets)

    def _count_strided(self, entry: Entry, table: torch.Tensor) -> None:
        layout, fill = entry.layout, (0,) * (MAX_DIMS - len(entry.layout.sizes))
        numbers = (entry.tensor.data_ptr(), layout.count, layout.times, *layout.sizes, *fill, *layout.strides, *fill)
        which = (len(layout.sizes), entry.row, TYPES[entry.tensor.dtype], table.data_ptr())
        blocks = max(1, min(self.resident_blocks, layout.count // THREADS))
        self.strided.launch((blocks, 1), THREADS, _STRIDED.pack(*numbers, *which), (0, _STRIDED.size - 8))

    def count_updates(self, updates: Sequence[Update], table: torch.Tensor) -> None:
        """Count updates, and how many of the wanted ones stagnate, into the rows of an int64 table."""
        for first in range(0, len(updates), MAX_SEGMENTS):
            some = updates[first : first + MAX_SEGMENTS]
            packed = bytearray(_MOVES_BYTES + 8)
            for i, update in enumerate(some):
                gradient = update.gradient.data_ptr() if update.gradient is not None else 0
                places = (update.after.data_ptr(), update.before.data_ptr(), gradient, update.after.numel())
                _MOVED.pack_into(packed, i * _MOVED.size, *places, update.row, TYPES[update.after.dtype])
            struct.pack_into("<Q", packed, _MOVES_BYTES, table.data_ptr())
            largest = max(update.after.numel() for update in some)
            across = max(1, min(self.resident_blocks, largest // (32 * THREADS)))  # 32 elements a thread or more
            self.updates.launch((across, len(some)), THREADS, bytes(packed), (0, _MOVES_BYTES))


@cache
def kernels_for(device_index: int) -> Kernels:
    """The kernels of a device. Raises RuntimeError where they cannot be had."""
    source = files("mpdiag.capture").joinpath("count.cu").read_text(encoding="utf-8")
    program = compile_program(source, "count", device_index, _CONSTANTS)
    return Kernels(
        exponents=program.function("count_exponents", SHARED_BYTES),
        strided=program.function("count_strided", SHARED_BYTES),
        updates=program.function("count_updates", SHARED_BYTES),
        resident_blocks=program.multiprocessors * BLOCKS_PER_MULTIPROCESSOR,
    )


def entry_for(row: int, tensor: torch.Tensor) -> Entry | None:
    """What the kernels read of a real floating tensor, without a copy; None where they can't."""
    if tensor.dtype not in TYPES:
        return None
    layout = layout_of(tensor)
    return Entry(row, tensor, layout) if len(layout.sizes) <= MAX_DIMS else None


_CONSTANTS = {
    "THREADS": THREADS,
    "COLUMN_LOG2": (THREADS * 4).bit_length() - 1,
    "BLOCKS": BLOCKS_PER_MULTIPROCESSOR,
    "DEPTH": LOADS_IN_FLIGHT,
    "CODES": columns.CODES,
    "CODE_INFS": columns.INFS,
    "CODE_ZEROS": columns.ZEROS,
    "CODE_NANS": columns.NANS,
    "COLUMN_ABS_MAX": columns.ABS_MAX,
    "COLUMN_ABS_MIN": columns.ABS_MIN,
    "COLUMN_STAGNANT_FP16": columns.STAGNANT_FP16,
    "COLUMN_STAGNANT_BF16": columns.STAGNANT_BF16,
    "COLUMN_WANTED": columns.WANTED,
    "TABLE_WIDTH": columns.WIDTH,
}
"""What the source has to know of the launch and of the table, as macros."""
