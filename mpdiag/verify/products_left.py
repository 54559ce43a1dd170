"""How much of a job's products stays in 16 bits once some modules compute in FP32: a plan may leave nothing of FP16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from mpdiag.diagnosis import Capture, TensorKind
from mpdiag.errors import MpdiagError
from mpdiag.loop import LoopEvent
from mpdiag.measure.flops import count_step
from mpdiag.target import Job, Start
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session


@dataclass(frozen=True)
class ProductFlops:
    """FLOPs of the matrix products and convolutions of one training step by module, "" for those outside all.

    reason: why they are not known; by_module is empty then.
    """

    by_module: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None


def count_products(job: Job, start: Start, device: torch.device, capture: Capture) -> ProductFlops:
    """Count them in one eager FP32 step on the first batch."""
    if capture.loop is not None and capture.loop.of(LoopEvent.COMPILED):
        return ProductFlops(reason="the model is compiled, so its products are not known by module")
    try:
        with open_session(job, start, FP32_IEEE, device) as session:
            counted = count_step(session, session.place(start.batch(0)))
    except MpdiagError as error:  # the search goes on without: this is what a plan is worth, not whether it works
        return ProductFlops(reason=f"its products could not be counted: {error.message}")
    if counted.uncounted:
        return ProductFlops(reason=f"no formula for the FLOPs of {', '.join(counted.uncounted)}")
    by_module = {name: sum(parts) for name, parts in counted.by_module.items() if sum(parts)}
    return ProductFlops(by_module, None if by_module else "it multiplies no matrices")


def half_share(products: ProductFlops, names: tuple[str, ...], capture: Capture) -> tuple[float | None, str | None]:
    """(the share 0..1 of the products' FLOPs outside the named modules, None), or (None, why it is not known).

    capture: with the types of an iteration that had these islands. A layer that was in FP32 all the same, as in an
    autocast region of the job's own that is off, is not in 16 bits either.
    """
    if products.reason is not None:
        return None, products.reason
    whole = sum(products.by_module.values())
    full = _seen_in_fp32(capture)
    left = sum(flops for name, flops in products.by_module.items() if name not in full and not _inside(name, names))
    return left / whole, None


def _inside(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def _seen_in_fp32(capture: Capture) -> set[str]:
    """Layers whose weight was not cast and whose output came in FP32: either alone may have another cause."""
    types = {(t.kind, t.name): t.amp_dtype for t in capture.tables}
    return {
        layer.name
        for layer in (capture.loop.layers if capture.loop else ())
        if types.get((TensorKind.WEIGHT, f"{layer.name}.weight")) == "float32"
        if types.get((TensorKind.ACTIVATION, layer.name)) == "float32"
    }
