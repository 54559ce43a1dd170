"""What this GPU sustains, and what its counters read on work that is known: one run of each body serves both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from mpdiag.costs.calibration import calibrate, ceilings
from mpdiag.costs.gpu import NEEDS_GPU
from mpdiag.costs.tensor_cores import BODIES, MATMULS, BodyReading, Calibration, Ceilings
from mpdiag.device.block import Block, read_block
from mpdiag.device.bodies import Body, matmul_size, ready_body, unsupported
from mpdiag.device.gpm import MIN_GPM_SECONDS
from mpdiag.device.nvml import Nvml
from mpdiag.device.stopwatch import release_memory, time_block
from mpdiag.errors import safe_text

NO_ROOM = "the GPU's memory has no room for it"
SECONDS = 8.0  # all six bodies: 1.02 s of each product and 0.34 s of the others are counted
# of that, a body: a product is what the power limit slows down. The rest loads, and rests before the bursts
PRODUCT_SHARE, OTHER_SHARE = 0.183, 0.06
LEAD_IN_SHARE = 0.3  # of a body's own: in the first tenths the clock falls deeper than it stays
BURST_SECONDS = 0.05  # an H100's power limit lowers the clock within the first tenths of a second of a full load
BURST_REST_SECONDS = 0.2  # of rest before a burst, so that the clock is up again after the body before
FASTEST = 5  # steps whose median is the burst's speed, as mamf-finder takes it: a ceiling is what can be reached


def measure_ceilings(
    device: torch.device,
    seconds: float = SECONDS,
    names: Sequence[str] = BODIES,
    report: Callable[[str], None] = lambda line: None,
    shared: str | None = None,
) -> tuple[Ceilings, Calibration]:
    """Run the bodies, `seconds` for all six, and give this GPU's ceilings and the calibration of its counters.

    A product has most of a fifth of `seconds`, its lead-in included: a second under load, not the minutes that a
    training takes, so a speed comes with its window and its clock, and is called not steady where the clock still fell.
    Before that, after a rest, it has a burst of 50 ms, which no `seconds` changes. Nothing raises: a body that does not
    fit, is not supported or fails has its reason. With another process on the GPU every reading has that reason instead
    of a number; shared: that reason, where it is known before (also of processes that NVML hides): then nothing runs.
    """
    refused = NEEDS_GPU if device.type != "cuda" else shared
    if refused is not None:
        bodies = tuple(BodyReading(name, 0.0, reason=refused, gpm_reason=refused) for name in names)
        return ceilings(bodies, None), calibrate(bodies)
    release_memory()
    size = matmul_size(device)
    nvml = Nvml(device)
    found = []
    for name in names:
        report(f"measure the {name} ceiling")
        found.append(_one_body(name, size, nvml, device, seconds))
        release_memory()
    return ceilings(found, size), calibrate(found)


def _one_body(name: str, size: int | None, nvml: Nvml, device: torch.device, seconds: float) -> BodyReading:
    reason = NO_ROOM if size is None else unsupported(name, device)
    if reason is not None or size is None:
        return BodyReading(name, 0.0, reason=reason, gpm_reason=reason)
    own = seconds * (PRODUCT_SHARE if name in MATMULS else OTHER_SHARE)
    window = max(own * (1 - LEAD_IN_SHARE), MIN_GPM_SECONDS * 1.25)
    try:
        with ready_body(name, size, device) as body:
            burst = _burst(body, nvml, device)
            block = read_block(nvml, body.step, window, device, lead_in_seconds=own * LEAD_IN_SHARE)
    except torch.OutOfMemoryError:
        return BodyReading(name, 0.0, reason=NO_ROOM, gpm_reason=NO_ROOM)
    except RuntimeError as error:  # a driver or a library that refuses one arithmetic must not end the rest
        reason = safe_text(error)
        return BodyReading(name, 0.0, reason=reason, gpm_reason=reason)
    return body_reading(body, block, burst)


def _burst(body: Body, nvml: Nvml, device: torch.device) -> tuple[float, int | None] | None:
    """(steps a second, clock in MHz) of a product's first 50 ms after a rest; None for what is no product."""
    if body.name not in MATMULS:
        return None
    pace, _ = time_block(body.step, 2, device)  # the first chooses the kernel and loads it
    steps = max(FASTEST, int(BURST_SECONDS * 1000 / max(pace[-1], 1e-3)))
    time.sleep(BURST_REST_SECONDS)
    times, _ = time_block(body.step, steps, device)
    clock = nvml.state().sm_clock_mhz
    fastest = median(sorted(times)[:FASTEST])
    return (1000 / fastest, clock) if fastest > 0 else None


def body_reading(body: Body, block: Block, burst: tuple[float, int | None] | None) -> BodyReading:
    """The record of a body's block and of the burst before it."""
    operations, moved_bytes = body.operations, body.bytes
    reading, state = block.reading, block.reading.states[-1]
    first = block.reading.states[0]
    shared = f"{reading.others} other process(es) used this GPU meanwhile" if reading.others else None
    rate = None if shared else block.steps / block.device_seconds
    return BodyReading(
        body=body.name,
        seconds=block.device_seconds,
        tflops=None if rate is None or operations is None else operations * rate / 1e12,
        gbytes_per_second=None if rate is None or moved_bytes is None else moved_bytes * rate / 1e9,
        gpm=None if shared else reading.gpm,
        relative_error=body.relative_error,
        sm_clock_mhz=state.sm_clock_mhz,
        power_watts=state.power_watts,
        limited_by=state.limited_by,
        first_clock_mhz=first.sm_clock_mhz,
        reason=shared,
        gpm_reason=shared or (reading.reasons.get("tensor_core") if reading.gpm is None else None),
        burst_tflops=None if shared or burst is None or operations is None else operations * burst[0] / 1e12,
        burst_clock_mhz=None if shared or burst is None else burst[1],
    )
