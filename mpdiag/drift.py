"""When in training tensors are counted, and how the loss scale's window moves meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_PARTS = 8  # of a capture that is spread evenly: as many windows as a reader compares at a glance


@dataclass(frozen=True)
class WindowAt:
    """The feasible window of the steps first_step..last_step of training, counted from 0, of which `steps` were seen.

    lower_log2, upper_log2, log2_scale: as in LossScaleAdvice, None where no FP16 gradient was seen. underflow: share
    of the gradient elements lost at scale 1, energy_lost: their share of the squared norm.
    """

    first_step: int
    last_step: int
    steps: int
    lower_log2: int | None
    upper_log2: int | None
    log2_scale: int | None
    underflow: float | None
    energy_lost: float | None


def observed_parts(steps: int, at: Sequence[int] = (0,), skip: int = 0) -> list[range]:
    """The training steps to observe, in parts that each get a window of their own.

    From each place in `at`, `steps` steps are observed with `skip` unobserved ones between two. A step that lies in
    two parts belongs to the first. A single spread part is cut into up to MOST_PARTS.
    """
    parts: list[range] = []
    stride = skip + 1
    ends: dict[int, int] = {}  # by the remainder that a part's steps share: only such parts can have a step in common
    for first in sorted(set(at)):
        end = first + steps * stride
        part = range(max(first, ends.get(first % stride, first)), end, stride)
        ends[first % stride] = end
        if part:
            parts.append(part)
    if skip and len(parts) == 1:
        whole, size = parts[0], -(-len(parts[0]) // MOST_PARTS)
        parts = [whole[i : i + size] for i in range(0, len(whole), size)]
    return parts
