"""FP32 islands: modules that compute in FP32 inside an autocast region.

A module becomes an island by taking a class of the same name derived from its own, as torch's parametrizations and
FSDP do. Hooks would not do: they change the path of nn.TransformerEncoderLayer and split a compiled graph.
"""

from __future__ import annotations

import copyreg
import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from typing import Any

import torch

from mpdiag.errors import UsageError
from mpdiag.plan import spoken_module
from mpdiag.target.batches import map_tensors, tensors_in

_HALF = (torch.float16, torch.bfloat16)
_SHOWN = 6  # names in an error: a line or two
_PLAIN = "_mpdiag_plain_class"  # of an island's class: what the module was before


def fp32_islands(model: torch.nn.Module, names: Iterable[str]) -> tuple[torch.nn.Module, ...]:
    """Make islands of the named modules, all or none; returns those that were not islands before.

    Their floating 16-bit inputs are cast to FP32 and autocast is off inside them, so their outputs are FP32. The
    model itself goes by "" or by the name of its class. Raises UsageError `unknown-module`, `island-not-fp32`,
    `island-scripted` or `island-class`.
    """
    known = _by_name(model)
    found = {module: name for name in names for module in [_named(model, known, name)]}
    for module, name in found.items():
        _check(module, name)
    made = tuple(module for module in found if not is_island(module))
    for module in made:
        plain: Any = type(module)  # Any: mypy takes a class of modules for unhashable
        try:
            module.__class__ = _island_class(plain)
        except Exception as error:  # a class may refuse to be derived from, in its own words
            lift_islands(made)
            raise UsageError(
                "island-class",
                f"{found[module] or 'the model'} cannot stay in FP32: {plain.__name__} cannot be derived from: {error}",
                "write torch.autocast(..., enabled=False) into its forward instead",
            ) from error
    return made


def lift_islands(modules: Iterable[torch.nn.Module]) -> None:
    """Make plain modules of islands again: `lift_islands(model.modules())`. Others are left alone."""
    for module in modules:
        if _PLAIN in vars(type(module)):
            module.__class__ = vars(type(module))[_PLAIN]


def is_island(module: torch.nn.Module) -> bool:
    """Whether a module was made an island."""
    return any(_PLAIN in vars(cls) for cls in type(module).__mro__)  # torch's parametrizations derive from it again


@cache
def _island_class(plain: Any) -> type[torch.nn.Module]:
    """A class that is `plain` but for autocast; one for each, so that two islands of a kind are of one type."""

    def reduced(self: torch.nn.Module, protocol: Any) -> Any:
        # an object of a class made here could not be found again by name: pickle and copy remake it
        made: Any = plain.__reduce_ex__(self, protocol)
        if made[0] is not copyreg.__newobj__:  # type: ignore[attr-defined] # not in typeshed
            return made
        return (_remade, (plain, *made[1][1:]), *made[2:])

    content = {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "__reduce_ex__": reduced,
        _PLAIN: plain,
        # whoever calls forward directly, or puts another in the instance (accelerate does), gets an island too
        "__call__": _in_fp32(plain.__call__),
        "forward": _in_fp32(plain.forward),
    }
    return types.new_class(plain.__name__, (plain,), exec_body=lambda namespace: namespace.update(content))


def _remade(plain: Any, *arguments: Any) -> Any:
    cls = _island_class(plain)
    return cls.__new__(cls, *arguments)


def _in_fp32(call: Callable[..., Any]) -> Callable[..., Any]:
    """A method that computes in FP32 where autocast is on, and is itself where it is off."""

    @wraps(call)
    def island(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        device = _device_type(self, args, kwargs)
        if not torch.is_autocast_enabled(device):
            return call(self, *args, **kwargs)
        args = tuple(_widened(value) for value in args)
        kwargs = {name: _widened(value) for name, value in kwargs.items()}
        with torch.autocast(device, enabled=False):
            return call(self, *args, **kwargs)

    return island


def _device_type(module: torch.nn.Module, args: Any, kwargs: Any) -> str:
    for value in (*args, *kwargs.values()):
        for tensor in (value,) if isinstance(value, torch.Tensor) else tensors_in(value):
            return str(tensor.device.type)
    for parameter in module.parameters():
        return str(parameter.device.type)
    return "cpu"


def _widened(value: Any) -> Any:
    """16-bit floating tensors in FP32, in any nesting; what holds none is passed on as it is, not copied."""
    if isinstance(value, torch.Tensor):
        return _widen(value)
    if any(tensor.dtype in _HALF for tensor in tensors_in(value)):
        return map_tensors(_widen, value)
    return value


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor


def _by_name(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every name of every module, also as it was before DistributedDataParallel or torch.compile wrapped the model."""
    wrapped = dict(model.named_modules(remove_duplicate=False))
    names = {type(model).__name__: model, **wrapped}
    for name, module in wrapped.items():
        inner = name.replace("_orig_mod.", "")
        names.setdefault(inner, module)
        names.setdefault(inner.removeprefix("module."), module)
    return names


def _named(model: torch.nn.Module, known: Mapping[str, torch.nn.Module], name: str) -> torch.nn.Module:
    if name in known:
        return known[name]
    modules = {k: m for k, m in known.items() if m is not model}  # the model goes by its type too, which is no name
    closest = [] if name.isdecimal() else difflib.get_close_matches(name, modules, n=1)  # "2" is not what "12" meant
    nearest = f"; the closest name is {closest[0]!r}" if closest else _those_there(modules)
    raise UsageError(
        "unknown-module",
        f"the model has no module {name!r}{nearest}",
        "the names are those of model.named_modules(); a plan fits the model that was scanned",
    )


def _those_there(modules: Mapping[str, torch.nn.Module]) -> str:
    """The names nearest to the top, where none is like the one asked for."""
    by_module = {module: name for name, module in modules.items()}  # behind a wrapper the last is the model's own
    names = sorted(by_module.values(), key=lambda name: name.count("."))
    told = ", ".join(spoken_module(name, _what(modules[name])) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"; it has {told}{more}" if told else "; it has none"


def _what(module: torch.nn.Module) -> str:
    """As advice.islands says it of a capture: the type, and of a layer the channels."""
    for given, taken in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if hasattr(module, given) and hasattr(module, taken):
            return f"{type(module).__name__} {getattr(module, given)}->{getattr(module, taken)}"
    return type(module).__name__


def _check(module: torch.nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("island-scripted", f"{name!r} is TorchScript", "apply the plan before torch.jit.script")
    half = next((p.dtype for p in module.parameters() if p.dtype in _HALF), None)
    if half is not None:
        raise UsageError(
            "island-not-fp32",
            f"{name!r} holds {str(half).removeprefix('torch.')} parameters, so it cannot compute in FP32",
            "keep the weights in FP32 and let autocast cast them: no model.half()",
        )
