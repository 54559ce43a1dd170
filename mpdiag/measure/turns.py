"""The order in which arms take turns: balanced, so that no arm always follows the same other one."""

from __future__ import annotations

import random
from collections.abc import Sequence

SEED = 0  # the same order at every run of as many arms, so that two runs can be compared


def turns_of(names: Sequence[str], rounds: int, seed: int = SEED) -> tuple[tuple[str, ...], ...]:
    """`rounds` orders of all names: a Williams design, its names and rows shuffled.

    Every name comes at every place, and after every other name, equally often: in as many rounds as there are names,
    or twice as many where that is odd. A cyclic order balances the places only: each arm then inherits caches, heat
    and free memory from one and the same neighbour. (Williams, "Experimental Designs Balanced for the Estimation of
    Residual Effects of Treatments", 1949.)
    """
    chance = random.Random(seed)
    labels = list(names)
    chance.shuffle(labels)
    count = len(labels)
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]  # 0, 1, -1, 2, -2, ...
    rows = [[tuple(labels[(step + shift) % count] for step in zigzag)] for shift in range(count)] or [[()]]
    if count % 2:
        for pair in rows:
            pair.append(pair[0][::-1])  # of an odd number, a row and its reverse balance each other
    found: list[tuple[str, ...]] = []
    while len(found) < rounds:
        chance.shuffle(rows)
        found += [row for pair in rows for row in pair]
    return tuple(found[:rounds])
