"""Where a diagnosis comes from: the machine, and the training job as it came in."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Environment:
    """What the run ran on."""

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


@dataclass(frozen=True)
class Asked:
    """The size of the verification as it was last asked for: a bare `mpdiag verify` asks for the same.

    What the time budget cut of it is in Verification.cut.
    """

    verify_steps: int
    seeds: int
