"""From the history of an allocator and what was noted beside it to the parts of memory at the peak. No device here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mpdiag.costs.memory import MemorySplit

BEFORE = "before the step"
END = "end"
COPY, WORKSPACE, BATCH, BUFFER = "autocast copy", "workspace", "batch", "buffer"
WEIGHT, GRADIENT, STATE = "weight", "gradient", "optimizer state"
ACTIVATION = "activation "  # and the dtype
OPTIMIZER_STEP = "optimizer step"

_STRONGEST_FIRST = (WEIGHT, BUFFER, STATE, GRADIENT, BATCH, WORKSPACE, COPY)  # a saved weight is a weight

Event = tuple[str, int, int]
"""("alloc" or "free", address, bytes that were asked for)"""


class HistoryMismatchError(Exception):
    """The history and the notes do not belong together; the text is the reason."""


@dataclass(frozen=True)
class Note:
    """What was known at one mark in the history.

    kind: "tag" (the blocks at `addresses` are `label`), "phase" (`label` begins), "freeing" (what is freed from here
    on is `label`; "" ends it). where: the module or parameter that this happened at.
    """

    kind: str
    label: str = ""
    addresses: tuple[int, ...] = ()
    where: str | None = None


@dataclass(frozen=True)
class AtPeak:
    """The split, and where in the step the peak lay."""

    split: MemorySplit
    phase: str
    near: str | None


@dataclass
class _Life:
    """One block from its birth to its end, counted in events; label: the strongest it was given."""

    bytes: int
    born_at: int
    born_in: str
    freed_at: int | None = None
    label: str | None = None

    def name(self, label: str) -> None:
        if self.label is None or _rank(label) < _rank(self.label):
            self.label = label


def split_at_peak(
    live: Sequence[tuple[int, int]], events: Sequence[Event], notes: Sequence[Note], peak_bytes: int, mark_bytes: int
) -> AtPeak:
    """The live set at the moment with most bytes asked for, sorted into parts; their sum is `peak_bytes`.

    live: (address, bytes) of the blocks at the start. events: since then; a mark is a block of `mark_bytes` that is
    freed at once, and the n-th mark is where the n-th note was taken; the first is the beginning of the step.
    peak_bytes is the allocator's own figure, which counts whole blocks: the difference is its rounding. Raises
    HistoryMismatchError.
    """
    walk = _Walk(live, notes)
    for event in _with_marks(events, mark_bytes):
        walk.take(event)
    walk.check()
    alive = [life for life in walk.lives if life.born_at <= walk.peak_at < (life.freed_at or walk.now + 1)]
    scratch = [life for life in alive if walk.is_scratch(life)]
    for life in scratch:
        life.name(WORKSPACE)
    split = _summed(alive)
    rounding = peak_bytes - split.total
    if rounding < 0:
        raise HistoryMismatchError(f"the recorded blocks add up to {-rounding} bytes more than the allocator's peak")
    return AtPeak(replace(split, rounding_bytes=rounding), walk.peak_phase, walk.peak_near)


class _Walk:
    """The history read once, from the first event to the last."""

    def __init__(self, live: Sequence[tuple[int, int]], notes: Sequence[Note]) -> None:
        self.current = {address: _Life(size, 0, BEFORE) for address, size in live}
        self.lives = list(self.current.values())
        self.now = self.peak_at = 0  # an event's number; marks have none
        self.peak_phase = self._phase = BEFORE
        self.peak_near: str | None = None
        self._near: str | None = None
        self._total = self._peak = sum(size for _, size in live)
        self._notes, self._read = notes, 0
        self._freeing = ""

    def take(self, event: Event | None) -> None:
        """The next event; None is a mark."""
        if event is None:
            self._note()
        elif event[0] == "alloc":
            self._alloc(event[1], event[2])
        else:
            self._free(event[1])

    def check(self) -> None:
        """Raise HistoryMismatchError where notes are left over."""
        if self._read != len(self._notes):
            raise HistoryMismatchError(f"{self._read} marks in the history for {len(self._notes)} notes")

    def is_scratch(self, life: _Life) -> bool:
        """Whether a block was born at the peak and freed as the next thing of all: one operator's own workspace."""
        alone = life.born_at == self.peak_at and life.freed_at == self.peak_at + 1
        return alone and life.label is None and life.born_in != OPTIMIZER_STEP

    def _alloc(self, address: int, size: int) -> None:
        if address in self.current:
            raise HistoryMismatchError("a block is given twice")
        self.now += 1
        life = _Life(size, self.now, self._phase)
        self.current[address] = life
        self.lives.append(life)
        self._total += size
        if self._total > self._peak and self._phase != END:
            self._peak, self.peak_at = self._total, self.now
            self.peak_phase, self.peak_near = self._phase, self._near

    def _free(self, address: int) -> None:
        life = self.current.pop(address, None)
        if life is None:
            raise HistoryMismatchError("a block is freed that was never given")
        self.now += 1
        life.freed_at = self.now
        self._total -= life.bytes
        if self._freeing:
            life.name(self._freeing)

    def _note(self) -> None:
        if self._read == len(self._notes):
            raise HistoryMismatchError(f"more marks in the history than the {len(self._notes)} notes")
        note = self._notes[self._read]
        if self._read == 0:  # the step begins
            self._peak, self.peak_at = self._total, self.now
        self._read += 1
        if note.kind == "phase":
            self._phase, self._near = note.label, None
        elif note.kind == "freeing":
            self._freeing = note.label
        elif note.kind == "tag":
            for address in note.addresses:
                if address in self.current:  # others are on the CPU, or not torch's
                    self.current[address].name(note.label)
        if note.where is not None:
            if note.label == GRADIENT and self.peak_near is None and self.peak_phase == self._phase:
                self.peak_near = note.where  # the first gradient after the peak was what it worked on
            elif note.label != GRADIENT:
                self._near = note.where


def _with_marks(events: Sequence[Event], mark_bytes: int) -> Iterator[Event | None]:
    """The events, each mark as one None."""
    index = 0
    while index < len(events):
        what, address, size = events[index]
        follows = events[index + 1] if index + 1 < len(events) else None
        if what == "alloc" and size == mark_bytes and follows == ("free", address, size):
            index += 1
            yield None
        else:
            yield events[index]
        index += 1


def _rank(label: str) -> int:
    return _STRONGEST_FIRST.index(label) if label in _STRONGEST_FIRST else len(_STRONGEST_FIRST)


def _summed(alive: Sequence[_Life]) -> MemorySplit:
    named: dict[str, int] = {}
    other: dict[str, int] = {}
    for life in alive:
        if life.label is None:
            other[life.born_in] = other.get(life.born_in, 0) + life.bytes
        else:
            named[life.label] = named.get(life.label, 0) + life.bytes
    activations = {k.removeprefix(ACTIVATION): v for k, v in named.items() if k.startswith(ACTIVATION)}
    return MemorySplit(
        weights_bytes=named.get(WEIGHT, 0),
        buffers_bytes=named.get(BUFFER, 0),
        gradients_bytes=named.get(GRADIENT, 0),
        optimizer_state_bytes=named.get(STATE, 0),
        batch_bytes=named.get(BATCH, 0),
        activations_bytes=dict(sorted(activations.items(), key=lambda item: -item[1])),
        autocast_copies_bytes=named.get(COPY, 0),
        workspace_bytes=named.get(WORKSPACE, 0),
        other_bytes=other,
    )
