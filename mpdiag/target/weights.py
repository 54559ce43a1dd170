"""A model's numbers by name: every parameter and buffer, copied out and put into another model of the same make.

By name and not by the model's own state_dict, which leaves out buffers that are not persistent, and which a class may
have written anew with other keys, or without torch's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mpdiag.errors import UsageError


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers on the CPU, under their first names."""
    return {name: _copied(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def put_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Give a model the numbers of `weights_of`; what only one of the two has is left alone.

    A buffer takes another shape too, as those of observers do that begin empty. Raises UsageError `model-changes` where
    a parameter has another shape than it had.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in weights:
                continue
            if parameter.shape != weights[name].shape:
                raise UsageError(
                    "model-changes",
                    f"{source}: {name} is {tuple(parameter.shape)}, and in the model built before this one it was "
                    f"{tuple(weights[name].shape)}",
                    "let the model function build the same model at each call",
                )
            parameter.copy_(weights[name])
        buffers = dict(model.named_buffers(remove_duplicate=False))
        for name in weights.keys() - dict(model.named_parameters()).keys():
            _put_buffer(model, name, buffers.get(name), weights[name])


def _put_buffer(model: torch.nn.Module, name: str, own: torch.Tensor | None, value: torch.Tensor) -> None:
    if own is not None and own.shape == value.shape:
        if _same(own, value):  # one that is expanded, or was made in inference mode, cannot be written to
            return
        try:
            own.copy_(value)
            return
        except RuntimeError:
            pass
    owner, _, leaf = name.rpartition(".")
    try:
        buffers = model.get_submodule(owner)._buffers
    except AttributeError:  # no such module here
        return
    if leaf in buffers:
        buffers[leaf] = _copied(value)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    found = tensor.detach()
    return found.clone() if found.device.type in ("cpu", "meta") else found.cpu()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    try:
        return one.dtype == other.dtype and torch.equal(one, other.to(one.device))
    except (RuntimeError, NotImplementedError):  # sparse ones have no equality
        return False
