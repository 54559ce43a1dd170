"""From the readings of known bodies: the threshold for tensor-core claims, and the ceilings of this GPU."""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.costs.tensor_cores import (
    COPY,
    ELEMENTWISE,
    FP16_MATMUL,
    FP32_MATMUL,
    MATMULS,
    BodyReading,
    Calibration,
    Ceilings,
    GpmEvidence,
    share_of_active,
)

MARGIN = 0.02  # points above the floor at least: GPM's own noise on an H100 reads up to 2.2 % on plain additions
FLOOR_SHARE = 0.5  # and half the floor again: other kernels may light the pipe up more than the bodies do
CONTRAST = 4  # FP16's reading has to be that many thresholds high, or "above" means little
IEEE_ERROR = 1e-5  # of a product against FP64: IEEE FP32 is below 1e-6, TF32 with its 10 bits above 1e-4
CLOCK_FELL = 0.03  # of the clock at the window's beginning: less is two of the steps in which an H100's clock moves
IEEE_READS_HIGH = 0.1  # an IEEE product on an H100 reads 0.0 and a TF32 one 0.85

RULE = (
    "the highest reading of the bodies without tensor-core products (IEEE FP32 matmul, FP16 elementwise), plus half of "
    "it, at least 2 points; of the time in which multiprocessors were active"
)
LEAK = (
    "the IEEE FP32 matmul {seen}: FP32 products run in TF32 here, whatever torch is told "
    "(NVIDIA_TF32_OVERRIDE or TORCH_ALLOW_TF32_CUBLAS_OVERRIDE)"
)


def calibrate(bodies: Sequence[BodyReading]) -> Calibration:
    """The threshold that the bodies' readings give, or why they give none."""
    found = {body.body: body for body in bodies}
    needed = (FP16_MATMUL, FP32_MATMUL, ELEMENTWISE)
    shares = {name: found[name].tensor_share for name in needed if name in found}
    missing = next((name for name in needed if shares.get(name) is None), None)
    if missing is not None:
        body = found.get(missing)
        why = (body.gpm_reason or body.reason or "GPM gave no reading") if body else "it was not run"
        return Calibration(tuple(bodies), False, None, None, None, RULE, f"{missing}: {why}")
    top, ieee, plain = (shares[name] or 0.0 for name in needed)
    floor = max(ieee, plain)
    threshold = floor + max(MARGIN, FLOOR_SHARE * floor)
    reason = leak(found[FP32_MATMUL])
    if reason is None and ieee > IEEE_READS_HIGH:
        reason = LEAK.format(seen=f"reads {ieee:.0%} on the tensor pipe")
    if reason is None and top < CONTRAST * threshold:
        reason = (
            f"the FP16 matmul reads {top:.1%} on the tensor pipe and work without matrix products {floor:.1%}: "
            "too close to tell them apart"
        )
    return Calibration(tuple(bodies), reason is None, threshold if reason is None else None, floor, top, RULE, reason)


def leak(ieee: BodyReading) -> str | None:
    """Why the FP32 body is not IEEE FP32, by its product's error; None where it is, or where that is not known."""
    if ieee.relative_error is None or ieee.relative_error < IEEE_ERROR:
        return None
    return LEAK.format(seen=f"is off by {ieee.relative_error:.1e} of its result")


def ceilings(bodies: Sequence[BodyReading], matmul_size: int | None) -> Ceilings:
    """The speeds of the bodies, by arithmetic."""
    found = {body.body: body for body in bodies}
    tflops: dict[str, float] = {}
    bursts: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name, arithmetic in MATMULS.items():
        body = found.get(name)
        if body is None or body.tflops is None:
            reasons[arithmetic] = (body.reason if body else None) or "not measured"
            continue
        why = leak(body) if name == FP32_MATMUL else None
        if why is None:
            tflops[arithmetic] = body.tflops
            if body.burst_tflops is not None:  # what is sustained was reached too
                bursts[arithmetic] = max(body.burst_tflops, body.tflops)
        else:
            reasons[arithmetic] = why
    copied = found.get(COPY)
    speed = copied.gbytes_per_second if copied else None
    if speed is None:
        reasons[COPY] = (copied.reason if copied else None) or "not measured"
    return Ceilings(
        tflops=tflops,
        copy_gbytes_per_second=speed,
        matmul_size=matmul_size,
        seconds=sum(body.seconds for body in bodies),
        sm_clock_mhz={body.body: body.sm_clock_mhz for body in bodies if body.sm_clock_mhz is not None},
        power_watts={body.body: body.power_watts for body in bodies if body.power_watts is not None},
        limited_by={body.body: body.limited_by for body in bodies if body.limited_by},
        reasons=reasons,
        window_seconds={body.body: body.seconds for body in bodies if body.seconds},
        bursts={body.body: told for body in bodies if (told := still_falling(body)) is not None},
        burst_tflops=bursts,
        burst_clock_mhz={body.body: body.burst_clock_mhz for body in bodies if body.burst_clock_mhz is not None},
    )


def still_falling(body: BodyReading) -> str | None:
    """How a body's clock fell while its speed was taken; None where it held, or where NVML does not tell."""
    first, last = body.first_clock_mhz, body.sm_clock_mhz
    if body.reason is not None or first is None or last is None or last >= first * (1 - CLOCK_FELL):
        return None
    why = f" ({', '.join(body.limited_by)})" if body.limited_by else ""
    return f"not steady yet: the clock fell from {first:,} to {last:,} MHz within {body.seconds:.1f} s{why}"


def judge_gpm(
    arm: str, gpm: dict[str, float] | None, seconds: float, calibration: Calibration, reason: str | None
) -> GpmEvidence:
    """What an arm's reading allows to say; `reason` is why it has none, or why it is not this arm's alone."""
    if reason is not None or gpm is None or "any_tensor" not in gpm:
        reason = reason or "GPM gave no reading of the tensor pipe"
        return GpmEvidence(arm, None, None, None, None, calibration.threshold, seconds, None, reason)
    share, active = gpm["any_tensor"], share_of_active(gpm)
    used: bool | None = None
    above: float | None = None
    why: str | None = None
    if active is None:
        why = "no multiprocessor was active"
    elif not calibration.usable or calibration.threshold is None:
        why = f"the calibration is not usable: {calibration.reason}"
    else:
        above = max(0.0, active - (calibration.floor or 0.0))
        if active > calibration.threshold:
            used = True
        else:
            why = (
                f"{active:.1%} of the active time is not above the threshold of {calibration.threshold:.1%}: "
                "work without matrix products reads as much"
            )
    return GpmEvidence(arm, used, share, active, above, calibration.threshold, seconds, gpm, why)
