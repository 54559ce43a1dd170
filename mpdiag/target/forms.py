"""The forms in which a target may give its loss and optimizer, each turned into the one a Job has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mpdiag.errors import UsageError, safe_text
from mpdiag.target import contract
from mpdiag.target.job import ONLY, Losses, Optimizers

DEFAULT_LEARNING_RATE = 1e-3  # AdamW's own default


def losses_of(namespace: dict[str, Any], source: str) -> Callable[[torch.nn.Module, Any], Losses]:
    """`compute_losses`, else `compute_loss`, else `loss_fn(output, target)`, else `.loss` on the model's output."""
    several = contract.find(namespace, contract.LOSSES)
    if several is not None:
        return several  # type: ignore[no-any-return] # the user's function; its yields are checked as they come
    single = contract.find(namespace, contract.LOSS)
    loss_fn = contract.find(namespace, contract.LOSS_FN)

    def losses(model: torch.nn.Module, batch: Any) -> Losses:
        if single is not None:
            yield ONLY, single(model, batch)
        elif loss_fn is not None:
            inputs, target = _pair(batch, source)
            yield ONLY, loss_fn(_call(model, inputs), target)
        else:
            yield ONLY, _loss_attribute(_call_for_loss(model, batch, source), source)

    return losses


def optimizers_of(
    namespace: dict[str, Any],
) -> tuple[Callable[[torch.nn.Module], Optimizers], tuple[str, ...]]:
    """`build_optimizers`, else `build_optimizer`, else AdamW(lr=1e-3), and a note for the report where it is ours."""
    several = contract.find(namespace, contract.OPTIMIZERS)
    single = contract.find(namespace, contract.OPTIMIZER)
    if several is not None:
        return lambda model: dict(several(model)), ()
    if single is not None:
        return lambda model: _named(single(model)), ()
    note = f"the target builds no optimizer: AdamW(lr={DEFAULT_LEARNING_RATE:g}) was used"
    return lambda model: {ONLY: torch.optim.AdamW(model.parameters(), lr=DEFAULT_LEARNING_RATE)}, (note,)


def _named(built: Any) -> Optimizers:
    """What `configure_optimizers` may return: an optimizer, (optimizer, ...) or {"optimizer": ...}."""
    if isinstance(built, Mapping):
        built = built.get("optimizer")
    while isinstance(built, list | tuple) and built:
        built = built[0]
    if not isinstance(built, torch.optim.Optimizer):
        raise UsageError(
            "target-no-optimizer",
            f"the optimizer function returned {type(built).__name__}",
            "return a torch.optim.Optimizer, or define build_optimizers(model) -> dict for several",
        )
    return {ONLY: built}


def _pair(batch: Any, source: str) -> tuple[Any, Any]:
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    raise UsageError(
        "target-no-loss",
        f"{source}: loss_fn(output, target) needs batches of (input, target), got {type(batch).__name__}",
        "define compute_loss(model, batch) instead",
    )


def _call(model: torch.nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, list | tuple) and not hasattr(inputs, "_fields"):
        return model(*inputs)
    return model(inputs)


def _call_for_loss(model: torch.nn.Module, batch: Any, source: str) -> Any:
    """The model's output for a whole batch; where it does not take one, the missing loss is the likelier fault."""
    try:
        return _call(model, batch)
    except TypeError as error:
        raise UsageError(
            "target-no-loss",
            f"{source} defines none of compute_loss, training_step, loss_fn, and the model does not take a batch as it "
            f"is: {safe_text(error)}",
            "add `def compute_loss(model, batch):` that returns a scalar tensor",
        ) from error


def _loss_attribute(output: Any, source: str) -> torch.Tensor:
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, Mapping):
        loss = output.get("loss")
    if loss is None:
        raise UsageError(
            "target-no-loss",
            f"{source} defines no loss, and the model's output ({type(output).__name__}) has no .loss",
            "add `def compute_loss(model, batch):` that returns a scalar tensor",
        )
    return loss  # type: ignore[no-any-return] # checked where it is used
