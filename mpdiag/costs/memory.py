"""What a training step keeps in GPU memory at its peak, and why mixed precision does not halve it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

HALF_TYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class MemorySplit:
    """The bytes in use at the peak of one recorded step; they add up to `total`, the allocator's peak in that step.

    activations_bytes: saved for backward, by dtype. autocast_copies_bytes: 16-bit copies of weights. workspace_bytes:
    cuBLAS's, and the block an operator had for itself alone at that moment. other_bytes: everything else, by when it
    was born ("before the step", "forward", "backward", "optimizer step"); in backward these are mostly gradients of
    activations. rounding_bytes: what the allocator gave beyond what was asked for.
    """

    weights_bytes: int = 0
    buffers_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_state_bytes: int = 0
    batch_bytes: int = 0
    activations_bytes: dict[str, int] = field(default_factory=dict)
    autocast_copies_bytes: int = 0
    workspace_bytes: int = 0
    other_bytes: dict[str, int] = field(default_factory=dict)
    rounding_bytes: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Every part by its name, in the order of the page; parts of zero bytes are left out."""
        found = {
            "weights": self.weights_bytes,
            "gradients": self.gradients_bytes,
            "optimizer state": self.optimizer_state_bytes,
            "autocast copies of weights": self.autocast_copies_bytes,
            **{f"activations, {dtype}": size for dtype, size in self.activations_bytes.items()},
            "batch": self.batch_bytes,
            "buffers": self.buffers_bytes,
            "workspace": self.workspace_bytes,
            **{f"other, {_born(born)}": size for born, size in self.other_bytes.items()},
            "allocator's rounding": self.rounding_bytes,
        }
        return {name: size for name, size in found.items() if size}

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.parts.values())

    @property
    def state_bytes(self) -> int:
        """What lives from step to step: weights, buffers, gradients, optimizer state."""
        return self.weights_bytes + self.buffers_bytes + self.gradients_bytes + self.optimizer_state_bytes


@dataclass(frozen=True)
class MemoryUse:
    """The memory of one arm, measured in a process of its own over three warm steps. None: not measured, see `reason`.

    peak_allocated_bytes: in tensors; peak_reserved_bytes: what the allocator held for it; driver_bytes: what the
    driver had given the process, CUDA context and libraries included (driver_reason where None). alloc_retries: how
    often the allocator had to empty its cache. samples: the batch size, of the largest of the job's batches.
    split and all that follows: of one more step, recorded (split_reason where None); recorded_peak_bytes is its own
    peak, to hold against the measured one. peak_phase: "forward", "backward" or "optimizer step"; peak_near: the
    module at work then, in backward the parameter whose gradient came next.
    """

    arm: str
    precision: str
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    alloc_retries: int | None = None
    driver_bytes: int | None = None
    driver_reason: str | None = None
    samples: int | None = None
    parameters: int | None = None
    allocator_settings: str | None = None
    split: MemorySplit | None = None
    split_reason: str | None = None
    recorded_peak_bytes: int | None = None
    peak_phase: str | None = None
    peak_near: str | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def absent(cls, arm: str, precision: str, reason: str) -> MemoryUse:
        """Nothing measured, and why."""
        return cls(arm, precision, reason=reason, split_reason=reason, driver_reason=reason)


@dataclass(frozen=True)
class NotHalf:
    """Why an arm's peak is not half of FP32's.

    ratio: of the recorded steps' peaks. foretold: the ratio if every activation took half the bytes and nothing else
    changed, (S + A/2) / (S + A). excess_bytes: by part, what the arm has beyond half of what FP32 has; the parts add
    up to the arm's peak less half of FP32's.
    """

    ratio: float
    foretold: float
    excess_bytes: dict[str, float]


def why_not_half(baseline: MemoryUse, arm: MemoryUse) -> NotHalf | None:
    """The reasons from both splits; None where one is missing."""
    if baseline.split is None or arm.split is None:
        return None
    theirs, mine = grouped(baseline.split), grouped(arm.split)
    whole = baseline.split.total
    others = baseline.split.other_bytes  # in forward and backward they are activations and gradients of such
    shrinks = theirs["activations"] + others.get("forward", 0) + others.get("backward", 0)
    excess = {name: mine[name] - theirs[name] / 2 for name in theirs}
    return NotHalf(
        ratio=arm.split.total / whole,
        foretold=(whole - shrinks / 2) / whole,
        excess_bytes={name: size for name, size in excess.items() if size},
    )


def grouped(split: MemorySplit) -> dict[str, int]:
    """The parts with all activations, and everything else that comes and goes, as one each."""
    return {
        "weights": split.weights_bytes,
        "gradients": split.gradients_bytes,
        "optimizer state": split.optimizer_state_bytes,
        "autocast copies of weights": split.autocast_copies_bytes,
        "activations": sum(split.activations_bytes.values()),
        "batch": split.batch_bytes,
        "buffers": split.buffers_bytes,
        "workspace": split.workspace_bytes,
        "other": sum(split.other_bytes.values()),
        "allocator's rounding": split.rounding_bytes,
    }


def from_reply(arm: str, value: dict[str, Any]) -> MemoryUse:
    """The record of what a child process measured, as JSON brought it."""
    split = value.get("split")
    made = MemoryUse(arm=arm, **value | {"split": None, "notes": tuple(value.get("notes", ()))})
    return made if split is None else replace(made, split=MemorySplit(**split))


def _born(when: str) -> str:
    return when if when.startswith("before") else f"from {when}"
