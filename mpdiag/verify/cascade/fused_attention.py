"""Scaled dot-product attention in plain FP32 mathematics that rounds what the fused FP16 kernels round inside.

Those keep scores and sums in FP32 and cast to FP16 what goes into the next matrix product: the probabilities P
(O = P V, dV = P' dO) and the gradient dS of the scores (dQ = dS K, dK = dS' Q). dS is often all below FP16's range
where no tensor that a module returns is. Scores are computed for some rows of the batch at a time, again in backward.

Where the scale of the scores (1/sqrt(width)) comes in differs: cuDNN's kernel and torch's memory-efficient one round
dS with it, the flash kernel without it, and torch's unfused path rounds nothing inside. Found by comparing, element by
element, which gradients become zero (H100, torch 2.11, cuDNN 9.19): the right rule misses 0 to 0.08 % of the
elements at any size of gradient, the others 9 to 14 % where it matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mpdiag.verify.cascade.rounding import to_half

WITH_SCALE, WITHOUT_SCALE = "with_scale", "without_scale"
ROUNDED = {0: None, 1: WITHOUT_SCALE, 2: WITH_SCALE, 3: WITH_SCALE}
"""How dS is rounded, by the number of torch.nn.attention.SDPBackend: unfused, flash, memory-efficient, cuDNN."""

SCORES_AT_ONCE = 2**26
"""Scores held at a time, a quarter of a GiB in FP32; one row of the batch may be more."""


@dataclass(frozen=True)
class _Setting:
    scale: float
    causal: bool
    dropout: float
    seed: int
    rounded: str | None  # how dS is; None: nothing is rounded
    log2_scale: int

    def keep(self, like: torch.Tensor, row: int) -> torch.Tensor | None:
        """What dropout leaves of some rows' probabilities, times 1/(1-p); the same each time. None: no dropout."""
        if not self.dropout:
            return None
        own = torch.Generator(like.device).manual_seed(self.seed + row)  # the user's generator is not touched
        kept = torch.rand(like.shape, generator=own, device=like.device) >= self.dropout
        return kept / (1 - self.dropout) if self.dropout < 1 else kept.to(like.dtype)

    def scores(self, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        scores = q @ k.transpose(-1, -2) * self.scale
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        return scores

    def probabilities(self, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        scores = self.scores(q, k, mask)
        if mask is None:
            return scores.softmax(-1)
        nothing = (scores == -math.inf).all(-1, keepdim=True)  # a query that may look at nothing gets zeros
        return scores.softmax(-1).masked_fill(nothing, 0.0)

    def stored(self, value: torch.Tensor) -> torch.Tensor:
        return value if self.rounded is None else to_half(value)

    def stored_gradient(self, ds: torch.Tensor) -> torch.Tensor:
        """The gradient of q k, rounded as the kernel has it at its products with k and q."""
        if self.rounded is None:
            return ds * self.scale
        if self.rounded == WITH_SCALE:
            return to_half(ds * self.scale, self.log2_scale)
        return to_half(ds, self.log2_scale) * self.scale


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, setting: _Setting
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.setting = setting
        parts = []
        for row, (q1, k1, v1, mask1) in _rows(q, k, v, mask):
            p = setting.probabilities(q1, k1, mask1)
            keep = setting.keep(p, row)
            parts.append(setting.stored(p if keep is None else p * keep) @ v1)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, do: torch.Tensor) -> Any:
        saved = ctx.saved_tensors  # with activation checkpointing they are computed now, and the mode has to see it
        with torch._C.DisableTorchFunction():
            return _Attention._gradients(ctx, do, *saved)

    @staticmethod
    def _gradients(
        ctx: Any, do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> Any:
        setting: _Setting = ctx.setting
        found: list[tuple[torch.Tensor, ...]] = []
        for row, (q1, k1, v1, mask1, do1) in _rows(q, k, v, mask, do):
            p = setting.probabilities(q1, k1, mask1)
            keep = setting.keep(p, row)
            used = p if keep is None else p * keep
            dv = setting.stored(used).transpose(-1, -2) @ do1
            dp = do1 @ v1.transpose(-1, -2)
            dp = dp if keep is None else dp * keep
            ds = p * (dp - (p * dp).sum(-1, keepdim=True))
            scaled = setting.stored_gradient(ds)
            gradients = [scaled @ k1, scaled.transpose(-1, -2) @ q1, dv]
            found.append((*gradients, ds) if ctx.needs_input_grad[3] else tuple(gradients))
        whole = [torch.cat(parts) for parts in zip(*found, strict=True)]
        return (*whole, None) if ctx.needs_input_grad[3] else (*whole, None, None)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    rounded: str | None = None,
    log2_scale: int = 0,
    seed: int | None = None,
) -> torch.Tensor:
    """F.scaled_dot_product_attention of FP32 tensors (..., length, width), with its arguments and its meaning.

    rounded: WITH_SCALE or WITHOUT_SCALE, as `kernel_rounding` says: P and dS are rounded to FP16, dS with a loss scale
    of 2^log2_scale on it; None: nothing is. seed: of dropout; None: one is drawn, and the device's generator left where
    torch's function would leave it.
    """
    own = functional.scaled_dot_product_attention
    if attn_mask is not None and is_causal:  # torch refuses it, or knows what it means
        return own(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if dropout_p and seed is None:
        with torch.random.fork_rng([query.device] if query.is_cuda else []):
            seed = int(torch.randint(2**62, (), device=query.device))
        with torch.no_grad():  # for its draws: what comes after it has to find the generator as it would have
            own(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
    lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    q, k, v = (t.expand(*lead, *t.shape[-2:]) for t in (query, key, value))
    mask = None if attn_mask is None else attn_mask.expand(*lead, q.shape[-2], k.shape[-2])
    if not lead:
        q, k, v = (t.unsqueeze(0) for t in (q, k, v))
        mask = None if mask is None else mask.unsqueeze(0)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    setting = _Setting(factor, is_causal, dropout_p, seed or 0, rounded, log2_scale)
    result: torch.Tensor = _Attention.apply(q, k, v, mask, setting)  # type: ignore[no-untyped-call] # torch's
    return result if lead else result.squeeze(0)


def kernel_rounding(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str | None:
    """How the kernel rounds that torch would choose for these in FP16; None off CUDA and for the unfused path."""
    if not query.is_cuda:
        return None
    q, k, v = (torch.empty_like(t, dtype=torch.float16, requires_grad=True) for t in (query, key, value))
    mask = attn_mask
    if mask is not None and mask.dtype != torch.bool:  # some kernels give a mask no gradient
        mask = mask.detach().half().requires_grad_(mask.requires_grad)
    choice = torch._fused_sdp_choice(q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return ROUNDED.get(int(choice), WITH_SCALE)


def _rows(*tensors: torch.Tensor | None) -> Iterator[tuple[int, list[Any]]]:
    """Some rows of q, k and the others at a time (a tensor that is None stays so), and the number of the first."""
    shapes = [t.shape for t in tensors if t is not None]
    one = max(1, math.prod(shapes[0][1:-1]) * shapes[1][-2])
    count = max(1, SCORES_AT_ONCE // one)
    for row in range(0, max(1, shapes[0][0]), count):
        yield row, [None if t is None else t[row : row + count] for t in tensors]
