"""A model of its own for every run, also where the target makes one model once and gives it at each call.

A run trains the model it is given, and may turn it into FP16 for good: the next must not find what that one left.
"""

from __future__ import annotations

import copy
import weakref

import torch

from mpdiag.errors import UsageError, safe_text

INSTANCE = "the model is an instance, not a function: every seed starts from the same weights"
ONE_MODEL = (
    "the model function gives the same model at each call: every run trains a copy of it, and every seed starts from "
    "the same weights unless the function draws them anew"
)
SHARED_PARTS = (
    "models that the model function gives at different calls share modules or parameters: every run trains a copy"
)


class OwnModels:
    """Tells a model that is new from one that shares modules or parameters with the first one seen.

    The first is given back as it is: whoever asks for it only reads it. `note` says what was found, None so far.
    """

    def __init__(self) -> None:
        self._first: dict[int, weakref.ref[torch.nn.Module | torch.Tensor]] | None = None
        self._root: weakref.ref[torch.nn.Module] | None = None
        self.note: str | None = None

    def own(self, model: torch.nn.Module, source: str) -> torch.nn.Module:
        """The model, or a copy of it where it is shared. Raises UsageError `model-not-copied` where it has none."""
        parts: tuple[torch.nn.Module | torch.Tensor, ...] = (*model.modules(), *model.parameters())
        if self._first is None or self._root is None:
            self._first, self._root = {id(part): weakref.ref(part) for part in parts}, weakref.ref(model)
            return model
        if self.note is None and any(self._seen(part) for part in parts):
            self.note = ONE_MODEL if self._root() is model else SHARED_PARTS
        return model if self.note is None else copied(model, source)

    def _seen(self, part: torch.nn.Module | torch.Tensor) -> bool:
        held = (self._first or {}).get(id(part))
        return held is not None and held() is part


def copied(model: torch.nn.Module, source: str) -> torch.nn.Module:
    """A copy that shares nothing with the model. Raises UsageError `model-not-copied`."""
    try:
        return copy.deepcopy(model)
    except MemoryError:
        raise
    except Exception as error:  # what the model holds may refuse in any way
        raise UsageError(
            "model-not-copied",
            f"{source}: every run needs a model of its own, and this one, which is made once, cannot be copied: "
            f"{type(error).__name__}: {safe_text(error)}",
            "build the model inside build_model, so that each call makes a new one",
        ) from error
