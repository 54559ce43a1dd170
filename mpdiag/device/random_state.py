"""The random state, the default dtype and the gradient mode of the caller, kept through a scan."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Python's, NumPy's and torch's random states come back on exit: a scan inside a program must not reseed it.

    So does torch's default dtype, which a target file may set.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        with default_dtype_kept():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def default_dtype_kept() -> Iterator[None]:
    """torch's default dtype comes back on exit."""
    kept = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(kept)


@contextmanager
def gradients_on() -> Iterator[None]:
    """Train with gradients, whatever torch.no_grad() or torch.inference_mode() the caller is in; it returns on exit."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
