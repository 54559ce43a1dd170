"""What a training run computes in, and the contexts and scaler that make it so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mpdiag.device.precision_settings import fp32_products
from mpdiag.training.cuda_regions import cuda_regions_on_cpu
from mpdiag.training.emulation import cuda_policy


@dataclass(frozen=True)
class Precision:
    """A numeric policy.

    autocast: None (FP32), torch.float16 or torch.bfloat16. pure: the whole model in that type, no FP32 master
    weights. log2_scale: a GradScaler starts there; None trains without one. ieee, tf32: FP32 products in IEEE
    arithmetic or in TF32, whatever the user's settings say. keep_fp32: modules that are FP32 islands. channels_last:
    model and images in that memory format. compiled: the model goes through torch.compile.
    """

    name: str
    autocast: torch.dtype | None = None
    pure: bool = False
    log2_scale: int | None = None
    growth_interval: int = 2000
    ieee: bool = False
    keep_fp32: tuple[str, ...] = ()
    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """torch's own GradScaler, or None when this policy trains unscaled."""
        if self.log2_scale is None:
            return None
        return torch.amp.GradScaler(device.type, init_scale=2.0**self.log2_scale, growth_interval=self.growth_interval)


def as_dict(precision: Precision) -> dict[str, Any]:
    """A precision as JSON can carry it to another process."""
    dtype = precision.autocast
    return asdict(precision) | {"autocast": None if dtype is None else str(dtype).removeprefix("torch.")}


def from_dict(record: dict[str, Any]) -> Precision:
    """The precision that `as_dict` described."""
    dtype = record["autocast"]
    islands = tuple(record["keep_fp32"])
    return Precision(**record | {"autocast": dtype and getattr(torch, dtype), "keep_fp32": islands})


FP32_IEEE = Precision("FP32", ieee=True)
FP16_AUTOCAST = Precision("FP16", autocast=torch.float16)


@dataclass(frozen=True)
class Region:
    """Called, it gives the context to compute a loss in. own_autocast: regions of the user's own code that were kept
    in FP32 so far, by device type.
    """

    opened: Callable[[], AbstractContextManager[None]]
    own_autocast: list[str] = field(default_factory=list)

    def __call__(self) -> AbstractContextManager[None]:
        """Open the region."""
        return self.opened()


@contextmanager
def in_force(precision: Precision, device: torch.device) -> Iterator[Region]:
    """Put a policy in force for a whole run; yields the region to compute each loss in.

    On a CUDA device the region is torch's autocast. On any other it is the emulated CUDA policy.
    """
    with fp32_products("ieee") if precision.ieee else fp32_products("tf32") if precision.tf32 else nullcontext():
        if precision.autocast is None:
            with autocast_off(device) as met:
                yield Region(nullcontext, met)
        elif device.type == "cuda":
            dtype = precision.autocast
            yield Region(nullcontext if precision.pure else lambda: torch.autocast("cuda", dtype=dtype))
        else:
            with cuda_policy(pure=precision.pure) as forget_casts:
                yield Region(lambda: _emulated_region(precision, forget_casts))


@contextmanager
def _emulated_region(precision: Precision, forget_casts: Callable[[], None]) -> Iterator[None]:
    try:
        with torch.autocast("cpu", dtype=precision.autocast):
            yield
    finally:
        forget_casts()  # autocast drops its weight copies where the outermost region ends


@contextmanager
def autocast_off(device: torch.device) -> Iterator[list[str]]:
    """Within it, regions that the user's own code opens stay FP32; the list fills with their device types.

    An FP32 run has to be one, also for a job that says `with torch.autocast("cuda"):` in its forward. Off CUDA such
    regions are noted as the CPU's, as the emulation runs them.
    """
    enter: Any = torch.autocast.__enter__
    met: list[str] = []

    def enter_disabled(self: torch.autocast) -> Any:
        wanted = self._enabled
        if wanted:
            met.append(self.device)
        self._enabled = False
        try:
            return enter(self)
        finally:
            self._enabled = wanted

    torch.autocast.__enter__ = enter_disabled  # type: ignore[method-assign]
    try:
        with nullcontext() if device.type == "cuda" else cuda_regions_on_cpu():
            yield met
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]


def emulated(precision: Precision, device: torch.device) -> bool:
    """Whether a policy is emulated on this device rather than run by its hardware."""
    return precision.autocast is not None and device.type != "cuda"
