"""Seeds that change nothing: their runs are one run twice, and count once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpdiag.diagnosis import Trial

SAME_START = 1e-5  # runs whose first losses agree to this share began alike: it is rounding that tells them apart
FIRST_LOSSES = 3  # ... one is not enough: with a last layer of zeros every seed begins at the same loss
LEFT = 1e-3  # of the first loss: a loss that has moved so far has left it, which a warm-up may take many steps to
LEAVING = 2  # losses that have left; twins go the same way then, and are chaos later
SAME_WAY = 0.01  # of how far they have moved: of other batches or weights losses part by a tenth of it and more

Pairs = Sequence[tuple[Trial, Trial]]
"""FP32's run and an arm's, of the same seed each."""


def distinct(pairs: Pairs) -> list[tuple[Trial, Trial]]:
    """The pairs whose baselines differ: a seed that changes nothing gives one run twice, not more evidence.

    On a GPU such twins are not equal to the bit; runs that begin alike, and leave their first loss alike, are taken for
    one.
    """
    kept: list[tuple[Trial, Trial]] = []
    for pair in pairs:
        if not any(_begin_alike(pair[0], other[0]) for other in kept):
            kept.append(pair)
    return kept


def _begin_alike(one: Trial, other: Trial) -> bool:
    if one.losses == other.losses:
        return True
    left = 0
    for step, (a, b) in enumerate(zip(one.losses, other.losses, strict=False)):
        moved = max(abs(a - one.losses[0]), abs(b - one.losses[0]))
        allowed = SAME_START * max(abs(a), abs(b))
        allowed = allowed if step < FIRST_LOSSES else max(allowed, SAME_WAY * moved)
        if a != b and not abs(a - b) <= allowed < math.inf:
            return False  # also where one is not finite
        left += moved > LEFT * abs(one.losses[0])
        if step >= FIRST_LOSSES - 1 and left >= LEAVING:
            break
    return bool(one.losses) and bool(other.losses)
