"""An allocator of the CPU's storages that acts like CUDA's: peaks, a history, a limit and a lack of memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpdiag.device.memory import MARK_BYTES, Peaks

ROUND = 512


class FakeAllocator(TorchDispatchMode):
    """Watches every storage that an operator makes, as a caching allocator would."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[int, StorageWeakRef]] = {}
        self.events: list[tuple[str, int, int]] | None = None
        self.workspace = (64, 8 * 2**20)
        self.peak = 0
        self.total, self.held, self.most = 10**12, 0, 10**12
        self.retries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor)
        return result

    def see(self, tensor: torch.Tensor) -> None:
        self.sweep()
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.alive and storage.nbytes():
            self.alive[storage.data_ptr()] = storage.nbytes(), StorageWeakRef(storage)
            self._log("alloc", storage.data_ptr(), storage.nbytes())
        self.peak = max(self.peak, self.in_use)
        if self.in_use > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def sweep(self) -> None:
        for address, (size, storage) in list(self.alive.items()):
            if storage.expired():
                del self.alive[address]
                self._log("free", address, size)

    def _log(self, what: str, address: int, size: int) -> None:
        if self.events is not None:
            self.events.append((what, address, size))

    @property
    def in_use(self) -> int:
        sizes = [size for size, _ in self.alive.values()] + [self.workspace[1]]
        return sum(-(-size // ROUND) * ROUND for size in sizes)

    def synchronize(self) -> None: ...

    def reset_peaks(self) -> None:
        self.sweep()
        self.peak = self.in_use

    def peaks(self) -> Peaks:
        self.sweep()
        return Peaks(self.peak, self.peak + 4096, self.retries, 0)

    def card(self) -> tuple[int, int]:
        return self.total - self.held, self.total

    def limit(self, limit_bytes: int) -> None:
        self.most = limit_bytes

    def driver_bytes(self) -> tuple[int | None, str | None]:
        return None, "a fake has no driver"

    def start_history(self) -> list[tuple[int, int]]:
        self.sweep()
        self.events = []
        return [self.workspace, *((address, size) for address, (size, _) in self.alive.items())]

    def history(self) -> list[tuple[str, int, int]]:
        self.sweep()
        assert self.events is not None
        return self.events

    def stop_history(self) -> None:
        self.events = None

    def mark(self) -> None:
        self.sweep()
        self._log("alloc", 1, MARK_BYTES)
        self._log("free", 1, MARK_BYTES)

    def clear_workspaces(self) -> None:
        self.sweep()
        self._log("free", *self.workspace)
