"""The records of tensor-core evidence: known bodies, the threshold they give, an arm's reading, counters, ceilings."""

from __future__ import annotations

from dataclasses import dataclass, field

FP16, BF16, TF32, FP32 = "FP16", "BF16", "TF32", "FP32"
FP16_MATMUL, BF16_MATMUL, TF32_MATMUL = "FP16 matmul", "BF16 matmul", "TF32 matmul"
FP32_MATMUL, ELEMENTWISE, COPY = "IEEE FP32 matmul", "FP16 elementwise", "copy"
MATMULS = {FP16_MATMUL: FP16, BF16_MATMUL: BF16, TF32_MATMUL: TF32, FP32_MATMUL: FP32}
BODIES = (*MATMULS, ELEMENTWISE, COPY)


@dataclass(frozen=True)
class BodyReading:
    """A known piece of work, run on this GPU on the spot.

    tflops: operations over a window of `seconds`, after a lead-in; gbytes_per_second counts bytes read and written.
    gpm: NVML GPM's shares 0..1 of the time by name, over the same window. relative_error: of its product against FP64.
    first_clock_mhz: as the window began; sm_clock_mhz, power_watts, limited_by: as it ended, still under load.
    burst_tflops: of its fastest steps in the first 50 ms after a rest, before a power limit lowers the clock;
    burst_clock_mhz: right after them. reason: why it has no speed; gpm_reason: why it has no GPM reading.
    """

    body: str
    seconds: float
    tflops: float | None = None
    gbytes_per_second: float | None = None
    gpm: dict[str, float] | None = None
    relative_error: float | None = None
    sm_clock_mhz: int | None = None
    power_watts: float | None = None
    limited_by: tuple[str, ...] | None = None
    reason: str | None = None
    gpm_reason: str | None = None
    first_clock_mhz: int | None = None
    burst_tflops: float | None = None
    burst_clock_mhz: int | None = None

    @property
    def tensor_share(self) -> float | None:
        """Share of the multiprocessors' active time in which the tensor pipe was."""
        return share_of_active(self.gpm)


@dataclass(frozen=True)
class Calibration:
    """What GPM reads on known bodies here, and the threshold that follows.

    threshold: a share of the multiprocessors' active time, between what bodies without matrix products read (floor)
    and what the FP16 product reads (top); rule says how. reason: why it is not usable.
    """

    bodies: tuple[BodyReading, ...]
    usable: bool
    threshold: float | None
    floor: float | None
    top: float | None
    rule: str
    reason: str | None = None


@dataclass(frozen=True)
class GpmEvidence:
    """What GPM read over the steady steps of an arm.

    share: of the time, in which the tensor pipe was active (0..1); share_of_active: of the multiprocessors' active
    time, which is what the threshold is for; above_floor: what of that lies above the bodies without matrix products.
    used: True above the threshold; None otherwise, since a low reading does not prove that none were used. gpm: all
    shares. reason: why there is no claim, or no reading.
    """

    arm: str
    used: bool | None
    share: float | None
    share_of_active: float | None
    above_floor: float | None
    threshold: float | None
    seconds: float
    gpm: dict[str, float] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class CounterEvidence:
    """Tensor-core operations of one training step, counted by the hardware.

    operations: by source type ("fp16", "bf16", "tf32", "fp8"), multiplications and additions each counted as one.
    instructions: of the tensor pipe, of any type. metrics: each counter's name and its raw value. passes: how often
    the step was run. reason: which call said what, of all operations or of the types that are missing in `operations`;
    instructions_reason: likewise, where these alone are missing. remedy: what would permit it.
    """

    arm: str
    operations: dict[str, float] | None
    instructions: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    chip: str | None = None
    passes: int = 0
    reason: str | None = None
    remedy: str | None = None
    instructions_reason: str | None = None


@dataclass(frozen=True)
class Ceilings:
    """What this GPU reaches now, by the bodies of the calibration: the denominators of every "share of the ceiling".

    tflops: sustained, by arithmetic (FP16, BF16, TF32, FP32 is IEEE), which is what whole steps are held against;
    burst_tflops: of the first 50 ms, for a layer, whose kernels are as short (empty in older records).
    copy_gbytes_per_second: bytes read and written. matmul_size: M = N = K. seconds: of all windows together;
    window_seconds: by body. sm_clock_mhz, power_watts, limited_by: by body at the end of its window, where NVML tells;
    burst_clock_mhz: right after its burst. bursts: by body, how the clock still fell within the window, so that longer
    work is slower. reasons: by arithmetic or "copy", why a figure is missing or not what it seems.
    """

    tflops: dict[str, float]
    copy_gbytes_per_second: float | None
    matmul_size: int | None
    seconds: float
    sm_clock_mhz: dict[str, int] = field(default_factory=dict)
    power_watts: dict[str, float] = field(default_factory=dict)
    limited_by: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    window_seconds: dict[str, float] = field(default_factory=dict)
    bursts: dict[str, str] = field(default_factory=dict)
    burst_tflops: dict[str, float] = field(default_factory=dict)
    burst_clock_mhz: dict[str, int] = field(default_factory=dict)

    def of_layers(self, arithmetic: str) -> tuple[float | None, bool]:
        """(TFLOP/s that a layer is held against, whether that is the burst); the sustained one where there is none."""
        burst = self.burst_tflops.get(arithmetic)
        return (self.tflops.get(arithmetic), False) if burst is None else (burst, True)


def share_of_active(gpm: dict[str, float] | None) -> float | None:
    """The tensor pipe's share of the multiprocessors' active time; None without both readings, or with neither active.

    Instructions other than matrix products light the pipe up too (HFMA2.MMA loads constants), so its floor grows with
    the activity and not with the time.
    """
    if gpm is None or "any_tensor" not in gpm or gpm.get("sm", 0.0) <= 0:
        return None
    return min(1.0, gpm["any_tensor"] / gpm["sm"])
