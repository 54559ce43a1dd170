"""FP32 that is FP32: torch's TF32 and reduced-precision switches, set and put back.

An untouched torch runs convolutions in TF32 on Ampere and later (cudnn.conv defaults to "tf32"), so "FP32" has to
be asked for. What counts is `fp32_precision`. The older flags beside it (cudnn.allow_tf32, cuda.matmul.allow_tf32 and
torch.set_float32_matmul_precision) have a memory of their own, and torch raises where one is read that does not agree,
as torch.backends.cudnn.flags() does with every block: so within ours they agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_cudnn_allows_tf32 = torch._C._get_cudnn_allow_tf32  # torch's own, whatever stands in its place for a while


def _switches() -> dict[str, Any]:
    backends = torch.backends
    named = {
        "cuda.matmul": backends.cuda.matmul,
        "cudnn.conv": getattr(backends.cudnn, "conv", None),
        "cudnn.rnn": getattr(backends.cudnn, "rnn", None),
        "mkldnn.matmul": getattr(backends.mkldnn, "matmul", None),
        "mkldnn.conv": getattr(backends.mkldnn, "conv", None),
        "mkldnn.rnn": getattr(backends.mkldnn, "rnn", None),
    }
    return {name: switch for name, switch in named.items() if hasattr(switch, "fp32_precision")}


def configured(device: torch.device) -> dict[str, str]:
    """{switch: "ieee", "tf32", "bf16" or "none"} as the user's settings have it, for the device's backends."""
    ours = ("cuda", "cudnn") if device.type == "cuda" else ("mkldnn",)
    return {n: str(s.fp32_precision) for n, s in _switches().items() if n.startswith(ours)}


def is_ieee(device: torch.device) -> bool:
    """Whether the user's settings already compute FP32 in IEEE arithmetic ("none" means the same)."""
    return all(value in ("ieee", "none") for value in configured(device).values())


@contextmanager
def fp32_products(arithmetic: str) -> Iterator[None]:
    """Within it, FP32 products are computed in "ieee" FP32 or in "tf32"; the user's settings come back on exit.

    TF32 is for CUDA's backends only: oneDNN on a CPU would round to it too, which no one asked for. The older flags
    can be read within it and say the same. What the user's own code sets within it counts until the end of the block.
    """
    root: Any = torch.backends  # torch's types know nothing of its fp32_precision
    for_cuda: Any = torch.backends.cudnn  # its fp32_precision is that of all of CUDA, cuBLAS included
    with ExitStack() as undo:

        def put(switch: Any, own: str, value: str) -> None:
            undo.callback(setattr, switch, "fp32_precision", own)
            switch.fp32_precision = value

        undo.callback(_mend_cudnn, _cudnn_flag(), configured(torch.device("cuda")))
        put(for_cuda, _own(for_cuda, root, root), arithmetic)
        switches = _switches()
        for name, switch in switches.items():
            if name.startswith("mkldnn"):
                put(switch, _own(switch, torch.backends.mkldnn, root), "ieee")
            elif name == "cuda.matmul":  # also where it follows: torch.compile writes down what it finds there
                put(switch, _own(switch, for_cuda, for_cuda), arithmetic)
            elif switch.fp32_precision != arithmetic:
                # one that follows is not written to: what cudnn.conv and cudnn.rnn are in an untouched torch 2.13 (TF32
                # until a parent says otherwise) cannot be had back
                put(switch, switch.fp32_precision, arithmetic)
        undo.callback(torch.set_float32_matmul_precision, _matmul_word())
        torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
        if "mkldnn.matmul" in switches:
            switches["mkldnn.matmul"].fp32_precision = "ieee"  # to which "high" says TF32 too
        undo.enter_context(_cudnn_flag_agrees())
        yield


def _own(switch: Any, parent: Any, turned: Any) -> str:
    """What a switch was set to itself; "none" where it follows its parent, which torch's getter does not tell apart.

    So `turned`, the parent or the parent's parent, gets another value for a moment, to see whether the switch still
    agrees with its parent. A value of its own that is written back as an inherited one, or the reverse, would show only
    when the user sets a parent later.
    """
    shown: str = switch.fp32_precision
    if shown != parent.fp32_precision:
        return shown
    before = turned.fp32_precision
    try:
        turned.fp32_precision = "tf32" if before == "ieee" else "ieee"
        return "none" if switch.fp32_precision == parent.fp32_precision else shown
    finally:
        turned.fp32_precision = before


def _matmul_word() -> str:
    """What torch.set_float32_matmul_precision was last told, while mkldnn.matmul is "ieee"."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # cuda.matmul is in TF32: of the three words torch refuses this one alone
        return "highest"


def _cudnn_flag() -> bool | None:
    """torch.backends.cudnn.allow_tf32; None where torch raises, because it does not agree with conv and rnn."""
    try:
        return bool(_cudnn_allows_tf32())
    except RuntimeError:
        return None


@contextmanager
def _cudnn_flag_agrees() -> Iterator[None]:
    """Within it, who reads torch.backends.cudnn.allow_tf32 gets what conv is set to where torch would raise.

    The flag itself cannot be set without writing to conv and rnn, see above; so it is answered for.
    """

    def answer() -> bool:
        flag = _cudnn_flag()
        return bool(_switches()["cudnn.conv"].fp32_precision == "tf32") if flag is None else flag

    flag: Any = vars(type(torch.backends.cudnn))["allow_tf32"]
    functions: Any = torch._C  # where torch.backends.cudnn.flags() looks
    before = flag.getter, functions._get_cudnn_allow_tf32
    flag.getter = functions._get_cudnn_allow_tf32 = answer
    try:
        yield
    finally:
        flag.getter, functions._get_cudnn_allow_tf32 = before


def _mend_cudnn(flag: bool | None, shown: dict[str, str]) -> None:
    """Put cuDNN's flag and switches back where the user's code has written to them within the block."""
    if flag is not None and _cudnn_flag() != flag:
        torch.backends.cudnn.allow_tf32 = flag
    for name, switch in _switches().items():
        if name.startswith("cudnn") and switch.fp32_precision != shown[name]:
            switch.fp32_precision = shown[name]
