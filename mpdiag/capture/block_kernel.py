"""The CUDA kernel that counts exponents and the distances inside blocks in one pass; see kernel.py for the route."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch

from mpdiag.blocks import DISTANCES, LOST_RATIO, MX_BLOCK, RATIOS
from mpdiag.capture import block_columns, columns
from mpdiag.capture.block_layout import Rows
from mpdiag.capture.kernel import MAX_DIMS, TYPES
from mpdiag.device.cuda_program import CudaFunction, compile_program

THREADS = 512
BLOCKS_PER_MULTIPROCESSOR = 2
BLOCKS_A_WARP = 8  # at the least: emptying a thread block's counters costs as much as some blocks of elements
LANES = 32
SHARED_BYTES = 4 * (LANES * (columns.CODES + block_columns.MAXIMA) + 2 * columns.BINS)

_BLOCKED = struct.Struct(f"<qqq{2 * MAX_DIMS}qiii4xQQ")
_AFTER_BLOCKED = (0, _BLOCKED.size - 16, _BLOCKED.size - 8)


@dataclass(frozen=True)
class BlockKernel:
    """The compiled kernel of one device."""

    function: CudaFunction
    resident_blocks: int

    def count(self, row: int, tensor: torch.Tensor, rows: Rows, table: torch.Tensor, block_table: torch.Tensor) -> None:
        """Count a tensor into a row of both int64 tables, on the current stream, without synchronizing."""
        length = rows.count if rows.length % MX_BLOCK == 0 else rows.length  # no block crosses such rows anyway
        count, fill = rows.count // length, (0,) * (MAX_DIMS - len(rows.sizes))
        numbers = (tensor.data_ptr(), count, length, *rows.sizes, *fill, *rows.strides, *fill)
        which = (len(rows.sizes), row, TYPES[tensor.dtype], table.data_ptr(), block_table.data_ptr())
        blocks = count * -(-length // MX_BLOCK)
        grid = max(1, min(self.resident_blocks, blocks // (BLOCKS_A_WARP * THREADS // LANES)))
        self.function.launch((grid, 1), THREADS, _BLOCKED.pack(*numbers, *which), _AFTER_BLOCKED)


@cache
def block_kernel_for(device_index: int) -> BlockKernel:
    """The kernel of a device. Raises RuntimeError where it cannot be had."""
    source = files("mpdiag.capture").joinpath("blocks.cu").read_text(encoding="utf-8")
    program = compile_program(source, "blocks", device_index, _CONSTANTS)
    return BlockKernel(
        program.function("count_blocks", SHARED_BYTES), program.multiprocessors * BLOCKS_PER_MULTIPROCESSOR
    )


def readable(tensor: torch.Tensor, rows: Rows) -> bool:
    """Whether the kernel reads a real floating tensor with these rows."""
    return tensor.dtype in TYPES and len(rows.sizes) <= MAX_DIMS


_CONSTANTS = {
    "THREADS": THREADS,
    "DISTANCES": DISTANCES,
    "RATIOS": RATIOS,
    "LOST_RATIO": LOST_RATIO,
    "RATIO_END": block_columns.MAXIMA,
    "BINADES": columns.BINS,
    "BLOCK_WIDTH": block_columns.BLOCK_WIDTH,
    "COLUMN_LARGEST": block_columns.LARGEST,
    "CODES": columns.CODES,
    "CODE_INFS": columns.INFS,
    "CODE_ZEROS": columns.ZEROS,
    "CODE_NANS": columns.NANS,
    "COLUMN_ABS_MAX": columns.ABS_MAX,
    "COLUMN_ABS_MIN": columns.ABS_MIN,
    "TABLE_WIDTH": columns.WIDTH,
}
"""What the source has to know of the launch and of the tables, as macros."""
