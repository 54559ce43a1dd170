"""Which elements of the parameters are watched through a step, where memory does not suffice for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slice:
    """Elements start..stop of the parameter with this index."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Place:
    """Where the next round begins."""

    index: int
    start: int


START = Place(0, 0)


def next_slices(sizes: Sequence[tuple[int, int]], limit_bytes: int, place: Place) -> tuple[list[Slice], Place]:
    """The next run of elements that fits in `limit_bytes`, and where the round after it begins.

    sizes: elements and bytes an element of each parameter. The run goes round all parameters in order, each element
    at most once; where everything fits, it is everything and the place stays at the beginning.
    """
    if sum(count * size for count, size in sizes) <= limit_bytes:
        return [Slice(i, 0, count) for i, (count, _) in enumerate(sizes) if count], START
    found: list[Slice] = []
    index, start = (place.index, place.start) if place.index < len(sizes) else (0, 0)
    room = limit_bytes
    for _ in range(len(sizes) + 1):
        count, size = sizes[index]
        stop = min(count, start + room // size)
        if stop > start:
            found.append(Slice(index, start, stop))
            room -= (stop - start) * size
        if stop < count:
            return found, Place(index, max(start, stop))
        index, start = (index + 1) % len(sizes), 0
    return found, Place(index, start)
