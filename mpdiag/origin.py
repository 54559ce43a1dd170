"""Where a diagnosis comes from: the machine, and the training job as it came in."""

from __future__ import annotations

from dataclasses import dataclass, field

MATMUL_FLAGS = {
    "allow_fp16_reduced_precision_reduction": True,
    "allow_bf16_reduced_precision_reduction": True,
    "allow_fp16_accumulation": False,
}
"""torch.backends.cuda.matmul's flags on products in 16 bits, with torch's defaults (2.9 to 2.13)."""


@dataclass(frozen=True)
class Environment:
    """What the run ran on.

    The last three are of CUDA: None or empty on a CPU, and in diagnoses from before they were recorded. matmul_flags:
    what cuBLAS may do in 16 bits, by torch's names. overrides: environment variables that overrule fp32_precision.
    """

    python: str
    torch: str
    mpdiag: str
    platform: str
    cpu_threads: int
    cuda: str | None = None
    driver: str | None = None
    gpu: str | None = None
    compute_capability: str | None = None
    fp32_precision: dict[str, str] = field(default_factory=dict)
    cudnn_benchmark: bool | None = None
    matmul_flags: dict[str, bool] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)

    @property
    def unusual_settings(self) -> tuple[str, ...]:
        """What differs from torch's defaults among the last three, each as the code or shell that set it."""
        benchmark = ("torch.backends.cudnn.benchmark = True",) if self.cudnn_benchmark else ()
        flags = [(n, on) for n, on in self.matmul_flags.items() if on != MATMUL_FLAGS.get(n, on)]
        matmul = tuple(f"torch.backends.cuda.matmul.{name} = {on}" for name, on in flags)
        return benchmark + matmul + tuple(f"{name}={value}" for name, value in self.overrides.items())


@dataclass(frozen=True)
class TargetRecord:
    """The training job, as it came in. start_from: the checkpoint that its runs began with, None for initialisation.

    higher_is_better: of its metrics, but for those in lower_is_better; False where it says so of all. Of what the job
    does not say, a metric's name decides, and a note tells so.
    """

    name: str
    source: str
    parameters: int
    synthetic_data: bool
    optimizer: str
    batches: int
    samples_per_step: int | None
    metric: str | None
    higher_is_better: bool
    notes: tuple[str, ...] = ()
    start_from: str | None = None
    structure: str | None = None  # a hash of modules and parameters: another one is another model
    source_hash: str | None = None  # of the target file
    lower_is_better: tuple[str, ...] = ()
    batch_hash: str | None = None  # of the first batch of the scan's seed: another one is other data
    batch_ms: float | None = None  # to draw a batch, the mean but for the first; None for fewer than three


@dataclass(frozen=True)
class Asked:
    """The size of the verification as it was last asked for: a bare `mpdiag verify` asks for the same.

    What the time budget cut of it is in Verification.cut.
    """

    verify_steps: int
    seeds: int
