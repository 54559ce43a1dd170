"""On a CPU, a region that says "cuda" is the CPU's: torch without CUDA switches it off, where a GPU would not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def cuda_regions_on_cpu() -> Iterator[None]:
    """Within it, `torch.autocast("cuda", ...)` makes a region of the CPU, with all else as it was asked for.

    For every run on a CPU, so that those that watch the user's regions and those that emulate them agree. Regions made
    earlier (a decorator's, made as the target was imported) stay what torch made of them.
    """
    init = torch.autocast.__init__

    def on_cpu(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast.__init__ = on_cpu  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__init__ = init  # type: ignore[method-assign]
