"""Does the probe change the training? Run it with and without, and compare every bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from mpdiag.capture.probe import Probe
from mpdiag.device.memory import CudaAllocator
from mpdiag.diagnosis import SelfTest
from mpdiag.target import Job, Start
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session, total

STATES = 4  # times the parameters' bytes: two runs' parameters and gradients
ROOM_SHARE = 0.25  # of what this job leaves of the card


def run_selftest(job: Job, start: Start, device: torch.device, steps: int) -> SelfTest:
    """Losses, gradients, parameters, buffers and the random state after `steps`, bit for bit.

    Three runs from one start: plain, plain again (the control) and with the probe. A job that differs from itself is
    tried again under torch's deterministic algorithms; if it still does, unchanged is None with both differences,
    because nothing can be said then.
    """
    result = _compare(job, start, device, steps)
    if result.unchanged is not None:
        return result
    with _deterministic():
        retried = _compare(job, start, device, steps)
    if retried.unchanged is None:
        return result
    apart = f"two plain runs differ by up to {result.control:.2g} in a loss, gradient or weight"
    reason = f"tested under deterministic algorithms: as configured, {apart}"
    return replace(retried, control=result.control, reason=reason if retried.unchanged else retried.reason)


def _compare(job: Job, start: Start, device: torch.device, steps: int) -> SelfTest:
    reference = _run(job, start, device, steps, probed=False)
    control = _difference(reference, _run(job, start, device, steps, probed=False))
    difference = _difference(reference, _run(job, start, device, steps, probed=True))
    if control is not None:
        reason = "the job is not deterministic: two runs without the probe already differ"
        return SelfTest(None, steps, difference or 0.0, control, reason)
    if difference is not None:
        return SelfTest(False, steps, difference, 0.0, "the probe changed the training; please report this model")
    return SelfTest(True, steps, 0.0, 0.0)


@contextmanager
def _deterministic() -> Iterator[None]:
    """torch's deterministic algorithms where there are any; the user's settings come back on exit."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    benchmark = torch.backends.cudnn.benchmark
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each operator without a deterministic version says so
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.benchmark = benchmark


def _run(job: Job, start: Start, device: torch.device, steps: int, probed: bool) -> dict[str, torch.Tensor]:
    with open_session(job, start, FP32_IEEE, device) as run:
        probe = Probe(run.model, run.optimizers.values(), device, blocks=True) if probed else None
        losses = []
        try:
            for step in range(steps):
                losses.append(total(run.step(run.place(start.batch(step)))))
                if probe is not None:
                    probe.step_done()
        finally:
            if probe is not None:
                probe.remove()
        state = dict(_state(run.model, _where(run.model, device)))
        state["losses"] = torch.tensor(losses, dtype=torch.float64)
        return state


def _where(model: torch.nn.Module, device: torch.device) -> torch.device:
    """Where two states are kept to be compared: on the GPU where that is a small part of what is free, else the host.

    There it took most of the test: 17 s with 110 million parameters beside an H100.
    """
    if device.type != "cuda":
        return device
    allocator = CudaAllocator(device)
    _, total = allocator.card()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    room = total - allocator.peaks().reserved_bytes
    return device if STATES * parameters < ROOM_SHARE * room else torch.device("cpu")


def _state(model: torch.nn.Module, where: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        yield f"parameter {name}", _dense(parameter, where)
        if parameter.grad is not None:
            yield f"gradient {name}", _dense(parameter.grad, where)
    for name, buffer in model.named_buffers():
        yield f"buffer {name}", _dense(buffer, where)
    yield "random state", torch.get_rng_state()


def _dense(tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
    """A copy there with every element in its place, also of a sparse tensor."""
    return tensor.detach().to(where).to_dense().clone()


def _difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float | None:
    """None when every bit is equal, else the largest absolute difference (inf where shapes or NaNs differ)."""
    if one.keys() != other.keys():
        return float("inf")
    other = {name: tensor.to(one[name].device) for name, tensor in other.items()}  # the room may have changed
    unequal = [name for name in one if not _same_bits(one[name], other[name])]
    if not unequal:
        return None
    worst = 0.0
    for name in unequal:
        a, b = one[name].double(), other[name].double()
        gap = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
        worst = max(worst, float("inf") if gap != gap else gap)
    return worst


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)))
