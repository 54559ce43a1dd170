"""mpdiag: may this PyTorch job train in mixed precision, what breaks, what is gained?

`scan(target)` gives a Diagnosis, `load(path)` reads a saved one, `verify_saved(path)` finishes one on this machine,
`text(diagnosis)` is what the command prints, `save(diagnosis, path)` writes its JSON or page, `frame(diagnosis)` has
its tensors as a DataFrame;
`apply(model, plan)` keeps the modules of a plan.json in FP32 under autocast.
Importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpdiag.version import __version__

if TYPE_CHECKING:
    from mpdiag.api import ScanOptions, frame, load, save, scan, text
    from mpdiag.diagnosis import Diagnosis
    from mpdiag.finish import verify_saved
    from mpdiag.production import apply

__all__ = [
    "Diagnosis", "ScanOptions", "__version__", "apply", "frame", "load", "save", "scan", "text",
    "verify_saved",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "verify_saved":
        from mpdiag.finish import verify_saved

        return verify_saved
    if name in ("scan", "load", "save", "text", "frame", "ScanOptions"):
        import mpdiag.api

        return getattr(mpdiag.api, name)
    if name == "Diagnosis":
        from mpdiag.diagnosis import Diagnosis

        return Diagnosis
    if name == "apply":
        from mpdiag.production import apply

        return apply
    raise AttributeError(f"module 'mpdiag' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
