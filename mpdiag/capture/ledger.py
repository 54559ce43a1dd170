"""Which tensor has which row, in the count tables of every device, and the sums over the steps on the host."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import reduce
from threading import Lock

import torch

from mpdiag.blocks import FEATURES, FIRST_STEP, NO_ROWS, NOT_AN_OPERAND, NOT_ASKED, NOTHING_IN_BLOCKS, BlockCounts
from mpdiag.capture.block_columns import block_counts_of
from mpdiag.capture.block_counting import merged
from mpdiag.capture.counting import CountTable
from mpdiag.capture.kernel import TYPES, Update
from mpdiag.capture.layout import real_part
from mpdiag.capture.tally import Tensor, tabled
from mpdiag.capture.totals import Totals
from mpdiag.capture.transfer import HostCopies, Waiting
from mpdiag.diagnosis import TensorKind, TensorTable

_SCALED = (TensorKind.ACTIVATION_GRADIENT, TensorKind.WEIGHT_GRADIENT)
_OPERANDS = (TensorKind.ACTIVATION, TensorKind.WEIGHT, TensorKind.ACTIVATION_GRADIENT)  # of FP8 and FP4 products
_ON_THE_WAY = 2  # steps whose tables may be in flight before the host waits for the oldest


@dataclass
class Site:
    """A place where a tensor is seen. `row` is None until something was counted, `wanted` what the patterns say."""

    kind: TensorKind
    name: str
    module_type: str
    wanted: bool
    row: int | None = None


@dataclass(frozen=True)
class Change:
    """Elements of a parameter before and after a step, flat. elements, dtype: of the whole parameter."""

    site: Site
    before: torch.Tensor
    after: torch.Tensor
    gradient: torch.Tensor | None
    elements: int
    dtype: torch.dtype


@dataclass
class Sent:
    """One step's tables on their way to the host, with its loss scale and who found infinities."""

    tables: list[Waiting]
    scale: Waiting | None
    found_inf: list[tuple[Waiting, list[Site]]]
    steps: int
    gradients_came: bool
    blocks: list[Waiting]

    def all(self) -> list[Waiting]:
        """Everything that is on its way."""
        return [
            *self.tables,
            *self.blocks,
            *([self.scale] if self.scale is not None else []),
            *(w for w, _ in self.found_inf),
        ]


@dataclass
class _InBlocks:
    """What one part counted inside blocks, by row. along: what a row's blocks run along, also where all is zero."""

    counts: dict[int, BlockCounts] = field(default_factory=dict)
    along: dict[int, str] = field(default_factory=dict)


class Ledger:
    """Counts tensors under their sites. include and exclude are shell patterns on names, as the Probe explains.

    blocks: in the first step of each part, what FP8 and FP4 products read is also counted inside blocks.
    """

    def __init__(
        self, device: torch.device, include: tuple[str, ...], exclude: tuple[str, ...], rows: int, blocks: bool = False
    ) -> None:
        self._include, self._exclude = include, exclude
        self._capacity = rows
        self._tables: dict[torch.device, CountTable] = {}
        self._sites: list[Site] = []
        self._tensors: list[Tensor] = []
        self._parts = [Totals()]  # the last one grows
        self._lock = Lock()  # backward has a thread for each device
        self._pending: deque[Sent] = deque()
        self._scale: torch.Tensor | None = None
        self._found_inf: list[tuple[Waiting, list[Site]]] = []
        self._scalars = HostCopies()
        self._skipped_steps = 0
        self._blocks_wanted = self._in_blocks = blocks
        self._blocks_by_part = [_InBlocks()]  # as `_parts`
        self._why_no_blocks: dict[int, str] = {}
        self.counted_by = self._table_on(device).counted_by

    def site(self, kind: TensorKind, name: str, module_type: str) -> Site:
        """A new site. The row is given when something is first counted, so rows are in the order first seen."""
        included = not self._include or any(fnmatchcase(name, pattern) for pattern in self._include)
        wanted = included and not any(fnmatchcase(name, pattern) for pattern in self._exclude)
        return Site(kind, name, module_type, wanted)

    def count(self, site: Site, tensor: torch.Tensor, later: bool = False) -> None:
        """Count a tensor; `later`: it stays as it is until `count_waiting`, so it may share a launch with others."""
        if not site.wanted:
            return
        dense = tensor.layout == torch.strided and not tensor.is_nested
        if dense and tensor.device.type == "cuda" and tensor.dtype in TYPES:
            real = tensor  # as most are: not one operator of torch is called
        else:
            with torch.no_grad():
                found = real_part(tensor)
            if found is None:
                return
            real = found
        with self._lock:
            table = self._table_on(tensor.device)
            row = site.row if site.row is not None else self._row(site, tensor.dtype)
            if self._in_blocks and self._is_operand(row, site.kind, tensor):
                with torch.no_grad():
                    weight = site.kind is TensorKind.WEIGHT
                    along = table.add_with_blocks(row, real.detach(), weight, site.module_type)
                self._blocks_by_part[-1].along.setdefault(row, along or FEATURES)
            elif later:
                table.add_later(row, real)
            else:
                table.add(row, real)

    def count_waiting(self) -> None:
        """Count what was put off."""
        with self._lock:
            for table in self._tables.values():
                table.add_waiting()

    def count_updates(self, changes: Sequence[Change]) -> None:
        """Count updates, of whole parameters or of slices."""
        by_device: dict[torch.device, list[Update]] = {}
        for change in changes:
            site = change.site
            row = site.row if site.row is not None else self._row(site, change.dtype, change.elements)
            update = Update(row, change.before, change.after, change.gradient)
            by_device.setdefault(change.after.device, []).append(update)
        for device, some in by_device.items():
            self._table_on(device).add_updates(some)

    def note_scale(self, scale: torch.Tensor) -> None:
        """Remember the loss scale, a scalar on its device, by which this step's gradients are multiplied."""
        if self._scale is None:
            self._scale = torch.ones(1, dtype=torch.float32, device=scale.device)
        self._scale.copy_(scale.detach())

    def note_found_inf(self, found_inf: torch.Tensor, sites: list[Site]) -> None:
        """Where this scalar turns out to be 1, the step that is about to be taken is none: forget it in `sites`."""
        self._found_inf.append((self._scalars.start(found_inf.detach().reshape(1)), sites))

    def step_done(self, optimizer_steps: int, gradients_came: bool) -> None:
        """Send the iteration's counts to the host, and add up those that have arrived."""
        scale = self._scalars.start(self._scale) if self._scale is not None else None
        tables = [table.hand_over() for table in self._tables.values()]
        blocks = [table.hand_over_blocks() for table in self._tables.values()] if self._in_blocks else []
        self._in_blocks = False
        found = [waiting for waiting in blocks if waiting is not None]
        self._pending.append(Sent(tables, scale, self._found_inf, optimizer_steps, gradients_came, found))
        self._found_inf = []
        while len(self._pending) > _ON_THE_WAY or (self._pending and all(w.ready() for w in self._pending[0].all())):
            self._add_up(self._pending.popleft())

    def wait(self) -> None:
        """Add up what is still on its way."""
        while self._pending:
            self._add_up(self._pending.popleft())

    def skipped_steps(self) -> int:
        """How many iterations had gradients and no optimizer step that was one."""
        self.wait()
        return self._skipped_steps

    def tables(self, sources: dict[str, str]) -> tuple[TensorTable, ...]:
        """The totals so far, in the order first seen. sources: file:line by module name."""
        self.wait()
        found = self._tables_of(Totals.together(self._parts), sources)
        return tuple(self._with_blocks(row, table, self._blocks_by_part) for row, table in found.items())

    def end_part(self, sources: dict[str, str]) -> tuple[TensorTable, ...]:
        """The same since the last call."""
        self.wait()
        found = self._tables_of(self._parts[-1], sources)
        tables = tuple(self._with_blocks(row, table, self._blocks_by_part[-1:]) for row, table in found.items())
        self._parts.append(Totals())
        self._in_blocks = self._blocks_wanted
        self._blocks_by_part.append(_InBlocks())
        return tables

    def _tables_of(self, totals: Totals, sources: dict[str, str]) -> dict[int, TensorTable]:
        found = [(row, site) for row, site in enumerate(self._sites) if totals.steps(row)]
        return {row: self._record(totals, row, site, sources) for row, site in found}

    def _with_blocks(self, row: int, table: TensorTable, parts: Sequence[_InBlocks]) -> TensorTable:
        """The record with what was counted inside blocks in these parts, or why nothing was."""
        found = [
            replace(part.counts.get(row, NOTHING_IN_BLOCKS), along=part.along[row])
            for part in parts
            if row in part.along
        ]
        if found:
            return replace(table, blocks=reduce(operator.add, found), blocks_reason=None)
        reason = self._why_no_blocks.get(row, FIRST_STEP if table.kind in _OPERANDS else NOT_AN_OPERAND)
        return replace(table, blocks_reason=reason if self._blocks_wanted else NOT_ASKED)

    def _is_operand(self, row: int, kind: TensorKind, tensor: torch.Tensor) -> bool:
        """Whether a product may read the tensor in blocks; biases and other vectors among the weights are not read."""
        if kind not in _OPERANDS or (kind is TensorKind.WEIGHT and tensor.dim() < 2):
            self._why_no_blocks[row] = NOT_AN_OPERAND
        elif tensor.layout != torch.strided or tensor.is_nested or tensor.is_complex():
            self._why_no_blocks[row] = NO_ROWS
        else:
            return True
        return False

    def _record(self, totals: Totals, row: int, site: Site, sources: dict[str, str]) -> TensorTable:
        activation = site.kind in (TensorKind.ACTIVATION, TensorKind.ACTIVATION_GRADIENT)
        source = sources.get(site.name if activation else site.name.rpartition(".")[0])
        steps, maxima = totals.steps(row), totals.abs_max_by_step(row)
        return tabled(self._tensors[row], totals.row(row), steps, maxima, source)

    def _add_up(self, sent: Sent) -> None:
        scale = float(sent.scale.values()) if sent.scale is not None else 1.0
        gradients = [row for row, site in enumerate(self._sites) if site.kind in _SCALED] if scale != 1.0 else []
        void = [sites for found_inf, sites in sent.found_inf if float(found_inf.values())]
        forgotten = [site.row for sites in void for site in sites if site.row is not None]
        self._skipped_steps += sent.gradients_came and sent.steps == len(void)
        self._parts[-1].add([table.values() for table in sent.tables], gradients, scale, forgotten)
        if sent.blocks:
            counts = merged([waiting.values() for waiting in sent.blocks])
            seen = counts.any(dim=1).nonzero().flatten().tolist()
            self._blocks_by_part[-1].counts |= {row: block_counts_of(counts[row]) for row in seen}
        for waiting in sent.all():
            waiting.release()

    def _table_on(self, device: torch.device) -> CountTable:
        table = self._tables.get(device)
        if table is None:
            table = self._tables[device] = CountTable(device, self._capacity)
        return table

    def _row(self, site: Site, dtype: torch.dtype, elements: int | None = None) -> int:
        site.row = len(self._sites)
        self._sites.append(site)
        self._tensors.append(
            Tensor(site.name, site.module_type, site.kind, str(dtype).removeprefix("torch."), elements)
        )
        return site.row
