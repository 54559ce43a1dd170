"""What an aten operator does, as far as the second pass has to know: by name and by schema."""

from __future__ import annotations

from typing import Any

_COPIES = frozenset(
    """_to_copy clone copy lift_fresh lift _unsafe_view contiguous cat stack index index_select gather select_scatter
    slice_scatter constant_pad_nd repeat flip roll embedding masked_select take take_along_dim index_put triu tril
    slice_backward select_backward embedding_dense_backward unfold_backward _pack_padded_sequence""".split()
)  # the elements of a tensor, or some of them, elsewhere
_CREATES = frozenset(
    """empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros zero ones ones_like
    new_ones rand rand_like randn randn_like randint randperm normal uniform bernoulli exponential random eye linspace
    scalar_tensor full full_like new_full fill""".split()
)  # new numbers, but nothing computed
INHERITS = frozenset(
    "_to_copy clone copy lift_fresh lift _unsafe_view contiguous constant_pad_nd triu tril index_put".split()
)
"""Copies that hold all the numbers of their source: what was known of it is true of them."""

ELEMENTWISE = frozenset(
    "add sub mul div neg masked_fill where clamp clamp_min clamp_max tanh baddbmm addmm native_dropout".split()
)
"""What may stand between the product of queries and keys and its softmax (scale, mask, bias, soft cap)."""

PRODUCTS = frozenset("bmm mm baddbmm addmm addbmm matmul dot mv".split())
SOFTMAX = frozenset("_softmax _safe_softmax softmax".split())
LOGARITHMS = frozenset("log log2 log10".split())
GUARDS = frozenset("add clamp clamp_min".split())
"""What may stand between a softmax and its logarithm, and how an eps comes in."""

SUMS = frozenset("sum nansum cumsum index_add scatter_add scatter_reduce".split())
_SIDE_RESULTS = ("norm", "attention", "nll_loss", "dropout", "rnn", "lstm", "gru", "ctc_loss")
CONSTANT_ARGUMENTS = frozenset("other value min max fill_value eps epsilon".split())
"""Schema arguments whose number takes part in the arithmetic. An exponent, a probability, a dimension does not."""


def base_name(func: Any) -> str:
    """ "_softmax", "mul" also for mul_; an operator of another library keeps its "library::"."""
    name = str(func._schema.name).removeprefix("aten::")
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def shown_name(func: Any) -> str:
    """The name in the record, the same whichever kernel the device and type choose."""
    name = base_name(func).lstrip("_")
    for kernel in ("scaled_dot_product", "batch_norm"):
        if kernel in name and "::" not in name:
            whole = "scaled_dot_product_attention" if kernel == "scaled_dot_product" else kernel
            return whole + ("_backward" if "backward" in name else "")
    return name


def is_fused_attention(func: Any) -> bool:
    """Whether a call computes attention in one kernel, forward."""
    name = base_name(func)
    return name.startswith("_scaled_dot_product") and "backward" not in name


def is_rename(func: Any) -> bool:
    """Whether the result is its argument's memory under another name, or a copy of its elements."""
    returned = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
    return any(not alias.is_write for alias in returned) or base_name(func) in _COPIES


def creates(func: Any) -> bool:
    """Whether a call makes a tensor without computing it from another."""
    return base_name(func) in _CREATES


def writes_in_place(func: Any) -> bool:
    """Whether the first argument is what changes."""
    first = func._schema.arguments[:1]
    return bool(first and first[0].alias_info is not None and first[0].alias_info.is_write)


def has_side_results(func: Any) -> bool:
    """Whether only the first result is the operator's, the others being kept for its backward."""
    return any(word in base_name(func) for word in _SIDE_RESULTS)
