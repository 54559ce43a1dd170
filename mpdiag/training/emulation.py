"""The CUDA autocast policy on a CPU, through the dispatcher.

CPU autocast has lists of its own (softmax, layer_norm, sum and exp run in 16 bits there), so nothing learnt under
it holds on a GPU. Here every operator of the CUDA lists gets a kernel at the AutocastCPU dispatch key that casts by
the CUDA rule and calls the operator below autocast; operators that only the CPU policy lists fall through. Then
plain `torch.autocast("cpu", ...)` follows the CUDA rules, composite functions included, with the user's model and
GradScaler unchanged. All registrations are undone on exit.

Operators of the lower-precision list compute in FP32 on operands rounded to 16 bits and round the result back: what
tensor cores do (16-bit operands, FP32 accumulation), and many times quicker than a CPU's own FP16 kernels. The
roundings are ordinary casts, so autograd rounds every gradient where a GPU would: an overflow becomes infinite and
an underflow zero. Recurrent layers cast their inputs, weights and results the same way, to FP16 under BF16 autocast
too (cuDNN's path); the state between time steps inside them is not rounded.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.amp import autocast_mode
from torch.utils import _pytree as pytree

from mpdiag.training.autocast_lists import AutocastLists, installed
from mpdiag.training.cuda_regions import cuda_regions_on_cpu
from mpdiag.training.rounding import Softmax, eligible, rounded_result, to_type

_RECURRENT = (
    "lstm.input", "lstm.data", "gru.input", "gru.data", "rnn_tanh.input", "rnn_tanh.data", "rnn_relu.input",
    "rnn_relu.data",
)  # fmt: skip
# cuDNN runs these in FP16 under CUDA autocast, whatever its type (ATen/cudnn/AutocastRNN.cpp casts to kHalf; MP309);
# on a CPU they have no such entry
_NO_HALF_ON_CPU = (
    "avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d", "max_pool3d", "fractional_max_pool2d",
    "fractional_max_pool3d", "max_unpool2d", "max_unpool3d", "grid_sampler_2d", "grid_sampler_3d", "reflection_pad1d",
    "reflection_pad2d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "trace",
)  # fmt: skip
# run in their input's type on CUDA, which has FP16 kernels for them; a CPU lacks some of those
_BANNED = "binary_cross_entropy"
_BELOW = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

Kernel = Callable[..., Any]


class _Casts:
    """Casts as autocast makes them: eligible tensors only, a leaf weight once per region.

    The cache matters for numbers, not only for speed: a weight used twice has one 16-bit copy, so its two
    gradients are added in 16 bits, as on a GPU.
    """

    def __init__(self) -> None:
        self._weights: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def to(self, value: Any, dtype: torch.dtype) -> Any:
        if not eligible(value) or value.dtype == dtype:
            return value
        leaf = value.is_leaf and value.requires_grad and value.dtype == torch.float32 and dtype != torch.float32
        if not leaf or not torch.is_autocast_cache_enabled():
            return value.to(dtype)
        kept = self._weights.get(id(value))
        # a copy made under no_grad carries no graph and must not serve a training forward
        if (
            kept is not None
            and kept[0]() is value
            and kept[1].dtype == dtype
            and (kept[1].requires_grad or not torch.is_grad_enabled())
        ):
            return kept[1]
        cast = value.to(dtype)
        self._weights[id(value)] = (weakref.ref(value), cast)
        return cast

    def clear(self) -> None:
        self._weights.clear()


def _lower(op: Kernel, casts: _Casts, pure: bool, always: torch.dtype | None = None) -> Kernel:
    """always: the type to compute in, where that does not follow autocast's."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = always or torch.get_autocast_dtype("cpu")
        with _below_autocast():
            if pure and not any(eligible(a) and a.dtype == dtype for a in pytree.tree_leaves((args, kwargs))):
                return op(*args, **kwargs)
            cast = lambda a: _wide(a if pure else casts.to(a, dtype), dtype)
            args, kwargs = pytree.tree_map(cast, (args, kwargs))
            return rounded_result(op, args, kwargs, dtype)

    return kernel


def _wide(value: Any, dtype: torch.dtype) -> Any:
    return value.float() if eligible(value) and value.dtype == dtype else value


def _fp32(op: Kernel, casts: _Casts) -> Kernel:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _below_autocast():
            args, kwargs = pytree.tree_map(lambda a: casts.to(a, torch.float32), (args, kwargs))
            return op(*args, **kwargs)

    return kernel


def _fp32_dtype(op: Kernel) -> Kernel:
    def kernel(first: Any, *args: Any, **kwargs: Any) -> Any:
        with _below_autocast():
            given = kwargs.get("dtype") or next((a for a in args if isinstance(a, torch.dtype)), None)
            if op in _DTYPE_POSITIONAL and eligible(first) and given in (torch.float16, torch.bfloat16):
                dim, log = kwargs.get("dim", *args[:1]), op is torch.ops.aten.log_softmax.int
                return Softmax.apply(first, dim, given, log)  # type: ignore[no-untyped-call] # torch's has no types
            if eligible(first) and given is None:
                args = tuple(a for a in args if a is not None) if op in _DTYPE_POSITIONAL else args
                kwargs["dtype"] = torch.float32
            return op(first, *args, **kwargs)

    return kernel


_DTYPE_POSITIONAL = {torch.ops.aten.softmax.int, torch.ops.aten.log_softmax.int}
# their dtype is a positional argument, given as None by F.softmax


def _norm(op: Kernel) -> Kernel:
    """norm without a dtype becomes the overload with one ("fp32_append_dtype" in autocast_mode.h)."""
    with_dtype = {
        "norm.Scalar": torch.ops.aten.norm.ScalarOpt_dtype,
        "norm.ScalarOpt_dim": torch.ops.aten.norm.ScalarOpt_dim_dtype,
    }

    def kernel(first: Any, *args: Any, **kwargs: Any) -> Any:
        with _below_autocast():
            if not eligible(first):
                return op(first, *args, **kwargs)
            name = op._name.removeprefix("aten::")  # type: ignore[attr-defined] # an OpOverload knows its name
            if name == "norm.Scalar":
                return with_dtype[name](first, args[0] if args else kwargs.get("p", 2), dtype=torch.float32)
            args = (*args, False)[:3] if len(args) == 2 else args
            return with_dtype[name](first, *args, **kwargs, dtype=torch.float32)

    return kernel


def _promote(op: Kernel, casts: _Casts) -> Kernel:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _below_autocast():
            dtypes = [a.dtype for a in pytree.tree_leaves((args, kwargs)) if eligible(a)]
            if torch.float32 in dtypes:
                args, kwargs = pytree.tree_map(lambda a: casts.to(a, torch.float32), (args, kwargs))
            return op(*args, **kwargs)

    return kernel


def _widened(op: Kernel) -> Kernel:
    """In FP32 and rounded back to the type of the first floating operand."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _below_autocast():
            dtype = next((a.dtype for a in pytree.tree_leaves((args, kwargs)) if eligible(a)), torch.float32)
            args, kwargs = pytree.tree_map(lambda a: to_type(a, torch.float32), (args, kwargs))
            return rounded_result(op, args, kwargs, dtype)

    return kernel


def _banned(*_: Any, **__: Any) -> Any:
    # the words of CUDA autocast, so that users find the same answers
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast (CUDA policy). "
        "Use torch.nn.functional.binary_cross_entropy_with_logits or torch.nn.BCEWithLogitsLoss."
    )


def _below_autocast() -> Any:
    return torch._C._ExcludeDispatchKeyGuard(_BELOW)


def _overload(name: str) -> Any:
    """The operator overload of "op" or "op.overload", or None where this torch has none."""
    op, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, op, None), overload or "default", None)


def _kernels(lists: AutocastLists, casts: _Casts, pure: bool) -> Iterator[tuple[str, Kernel]]:
    """Every registration: (operator, kernel). `pure` only rounds around FP32 and casts nothing (a .half() model)."""
    listed: set[str] = set()
    rules: list[tuple[tuple[str, ...], Callable[[Kernel], Kernel]]] = [
        (lists.lower, lambda op: _lower(op, casts, pure)),
        (_RECURRENT, lambda op: _lower(op, casts, pure, None if pure else torch.float16)),
        (_NO_HALF_ON_CPU, _widened),
    ]
    if not pure:
        rules += [
            (lists.fp32, lambda op: _fp32(op, casts)),
            (lists.fp32_dtype, _fp32_dtype),
            (("norm.Scalar", "norm.ScalarOpt_dim"), _norm),
            (lists.promote, lambda op: _promote(op, casts)),
            ((_BANNED,), lambda op: _banned),
        ]
    for names, rule in rules:
        for name in names:
            op = _overload(name)
            if op is not None:
                listed.add(name)
                yield name, rule(op)
    on_cpu = (n.removeprefix("aten::") for n in _registered("AutocastCPU") if n.startswith("aten::"))
    for name in on_cpu:
        if name not in listed:
            yield name, torch.library.fallthrough_kernel


def _registered(key: str) -> list[str]:
    return list(torch._C._dispatch_get_registrations_for_dispatch_key(key))


@contextmanager
def _cuda_state_on_cpu(pure: bool) -> Iterator[None]:
    """Regions that say "cuda" act on the CPU, and whoever asks about CUDA autocast hears what the CPU's state is.

    The user's FP32 islands say autocast("cuda", enabled=False). torch's attention modules choose their path by
    `torch.is_autocast_enabled()`, which means CUDA. custom_fwd(device_type="cuda", cast_inputs=...) casts CPU tensors.
    """
    cast: Any = getattr(autocast_mode, "_cast", None)  # custom_fwd's; a torch without it keeps its own
    enter: Any = torch.autocast.__enter__
    leave: Any = torch.autocast.__exit__

    def cast_on_cpu(value: Any, device_type: str, dtype: torch.dtype) -> Any:
        return cast(value, "cpu" if device_type == "cuda" else device_type, dtype)

    def mirror() -> None:
        torch.set_autocast_enabled("cuda", torch.is_autocast_enabled("cpu"))
        torch.set_autocast_dtype("cuda", torch.get_autocast_dtype("cpu"))

    def enter_and_mirror(self: torch.autocast) -> Any:
        entered = enter(self)
        mirror()
        return entered

    def leave_and_mirror(self: torch.autocast, *args: Any) -> Any:
        left = leave(self, *args)
        mirror()
        return left

    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.autocast.__enter__ = enter_and_mirror  # type: ignore[method-assign]
    torch.autocast.__exit__ = leave_and_mirror  # type: ignore[method-assign]
    if cast is not None and not pure:  # a .half() model on a GPU is in no region: custom_fwd casts nothing there
        autocast_mode._cast = cast_on_cpu
    try:
        with cuda_regions_on_cpu():
            yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
        torch.autocast.__exit__ = leave  # type: ignore[method-assign]
        if cast is not None:
            autocast_mode._cast = cast
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@contextmanager
def cuda_policy(pure: bool = False) -> Iterator[Callable[[], None]]:
    """Within it, `torch.autocast("cpu", dtype)` casts as CUDA autocast does. Not reentrant, one thread.

    Yields a function that forgets the cached weight copies, to be called where the autocast region ends.
    With `pure`, nothing is cast: a model in half precision runs its matrix products and convolutions with FP32
    accumulation and everything else in its own precision.
    """
    casts = _Casts()
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "overriding a previously registered kernel": on purpose
            for name, kernel in _kernels(installed(), casts, pure):
                library.impl(name, kernel, allow_override=True)
        with _cuda_state_on_cpu(pure):
            yield casts.clear
    finally:
        casts.clear()
        library._destroy()
