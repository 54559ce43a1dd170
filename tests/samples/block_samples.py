"""What the tests of blocks share: the counts of some values, counts written by hand, and the target files."""

from pathlib import Path

import torch

from mpdiag.capture import portable_blocks
from mpdiag.capture.block_columns import block_counts_of

CPU = torch.device("cpu")
TARGETS = sorted((Path(__file__).parents[1] / "targets").glob("*.py"))
NVFP4_ERROR = 0.003  # the share lost, foretold and real, differed by 0.0021 at most over DISTRIBUTIONS


def counted(values, length=None):
    flat = torch.as_tensor(values).reshape(-1)
    return block_counts_of(portable_blocks.count_blocks(flat, length or flat.numel()))


def table_of(*pairs):
    """Trimmed counts with `pairs` of (place, count)."""
    return tuple(dict(pairs).get(i, 0) for i in range(max(place for place, _ in pairs) + 1))
