"""Attention logits that never exist in memory: recomputed from the queries and keys that a fused kernel is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOGITS_A_CALL = 2**22
"""Logits recomputed for one call, 16 MiB in FP32: all of a short context, some rows of a long one."""

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, never bunch: no period of the data is met or missed


@dataclass(frozen=True)
class LogitRows:
    """Which rows of queries are read, the same in every head read. total: rows of logits there are, over all heads."""

    heads: torch.Tensor
    rows: torch.Tensor
    total: int

    @property
    def read(self) -> int:
        """How many rows of logits are read."""
        return len(self.heads) * len(self.rows)


def rows_to_read(query: torch.Tensor, key: torch.Tensor, limit: int = LOGITS_A_CALL) -> LogitRows:
    """Rows of query [..., L, E] and key [..., S, E] that give at most about `limit` logits; all of them if they fit.

    Fewer rows of every head first; fewer heads where one row of each is too much. The last row is always among them:
    under a causal mask it sees most.
    """
    length, width = query.shape[-2], max(1, key.shape[-2])
    heads = query[..., 0, 0].numel()
    chosen = _spread(heads, max(1, limit // width), query.device)
    rows = _spread(length, max(1, limit // (width * max(1, len(chosen)))), query.device)
    return LogitRows(chosen, rows, heads * length)


def logits_of(query: torch.Tensor, key: torch.Tensor, scale: float | None, read: LogitRows) -> torch.Tensor:
    """FP32 logits [heads read, rows read, S]: q @ k^T * scale (None: 1/sqrt(E)), before any mask.

    Fewer key heads than query heads are shared among them (grouped queries).
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if key.dim() > 2 and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    queries, keys = query.flatten(0, -3), key.flatten(0, -3)
    some = queries.index_select(0, read.heads).index_select(1, read.rows).float() * scale
    logits: torch.Tensor = some @ keys.index_select(0, read.heads).float().transpose(1, 2)
    return logits


def _spread(count: int, wanted: int, device: torch.device) -> torch.Tensor:
    """Indices 0..count-1: all of them, or about `wanted` with the last among them."""
    if count <= wanted:
        return torch.arange(count, device=device)
    places = (torch.arange(wanted, dtype=torch.float64, device=device) * _GOLDEN % 1.0 * count).long()
    places[0] = count - 1
    chosen: torch.Tensor = places.unique()
    return chosen
