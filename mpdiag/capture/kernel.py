"""The CUDA kernel that counts exponents: compiled at run time, launched without synchronizing.

The route is cuda-bindings (NVIDIA's own Python package for NVRTC and the driver API), because torch's CUDA wheels
require it: nothing to install, no compiler on the user's machine, public API. cuda-core would be one more dependency
for a thin layer over the same calls; torch.cuda._compile_kernel is private; torch.utils.cpp_extension needs nvcc and a
minute; Triton's histogram stays at 40 to 60 % of memory bandwidth. Where any step fails, counting takes the portable
torch path, which gives the same integers.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import torch

from mpdiag.device.cuda_program import CudaFunction, compile_function

THREADS = 256
UNIT = 2048  # elements a block takes at a time, as in count.cu
MAX_SEGMENTS = 96  # 32 bytes each: a kernel's parameters may take 4 KiB
ALIGNMENT = 16  # bytes: one vector load
BLOCKS_PER_MULTIPROCESSOR = 6  # 33 KiB of shared memory each

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_SEGMENT = struct.Struct("<qqqii")

Entry = tuple[int, torch.Tensor]  # row, flat contiguous values


@cache
def kernel_for(device_index: int, codes: tuple[tuple[str, int], ...]) -> CudaFunction:
    """The compiled kernel. Raises RuntimeError where it cannot be had."""
    source = files("mpdiag.capture").joinpath("count.cu").read_text(encoding="utf-8")
    return compile_function(source, "count_exponents", device_index, dict(codes))


def fits(values: torch.Tensor) -> bool:
    """Whether the kernel reads this flat tensor: its types, its first element on a 16-byte boundary."""
    return values.dtype in TYPES and values.is_contiguous() and values.data_ptr() % ALIGNMENT == 0


def launch(function: CudaFunction, entries: Sequence[Entry], table: torch.Tensor) -> None:
    """Count the tensors of `entries` into the rows of an int64 table, on the current stream."""
    for first in range(0, len(entries), MAX_SEGMENTS):
        _launch_some(function, entries[first : first + MAX_SEGMENTS], table)


def _launch_some(function: CudaFunction, entries: Sequence[Entry], table: torch.Tensor) -> None:
    segments = ctypes.create_string_buffer(_SEGMENT.size * MAX_SEGMENTS)
    units = used = 0
    for row, values in entries:
        if values.numel() == 0:
            continue
        place = used * _SEGMENT.size
        _SEGMENT.pack_into(segments, place, values.data_ptr(), values.numel(), units, row, TYPES[values.dtype])
        units += -(-values.numel() // UNIT)
        used += 1
    if used:
        blocks = min(units, function.multiprocessors * BLOCKS_PER_MULTIPROCESSOR)
        arguments = (segments, ctypes.c_int(used), ctypes.c_longlong(units), ctypes.c_void_p(table.data_ptr()))
        function.launch(blocks, THREADS, arguments)
