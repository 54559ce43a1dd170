"""torch's CUDA allocator: its peaks, a limit on it, and the history of its blocks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from mpdiag.device.nvml import OF_THE_CARD, handles_of

MAX_EVENTS = 1_000_000  # of a recorded step; each takes some hundred bytes, and a step makes some ten thousand
MARK_BYTES = 379  # an odd size that no tensor has by habit; what looks like a mark and is none is found by counting

Block = tuple[int, int]
"""(address, bytes that were asked for)"""

Event = tuple[str, int, int]
"""("alloc" or "free", address, bytes that were asked for)"""

_OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class NoHistoryError(Exception):
    """This torch or this allocator does not tell the history of its blocks; the text is the reason."""


@dataclass(frozen=True)
class Peaks:
    """Since the last reset, in bytes. alloc_retries, ooms: since the process began; at each the cache was emptied."""

    allocated_bytes: int
    reserved_bytes: int
    alloc_retries: int
    ooms: int


class CudaAllocator:
    """The caching allocator of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._index = device.index if device.index is not None else torch.cuda.current_device()

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self.device)

    def reset_peaks(self) -> None:
        """Begin new peaks at what is allocated now."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> Peaks:
        """The peaks so far; the caller synchronizes where kernels may still allocate (they do not in eager torch)."""
        stats = torch.cuda.memory_stats(self.device)
        return Peaks(
            allocated_bytes=int(stats.get("allocated_bytes.all.peak", 0)),
            reserved_bytes=int(stats.get("reserved_bytes.all.peak", 0)),
            alloc_retries=int(stats.get("num_alloc_retries", 0)),
            ooms=int(stats.get("num_ooms", 0)),
        )

    def card(self) -> tuple[int, int]:
        """(free bytes, all bytes) of the whole card, as the driver sees it."""
        free, total = torch.cuda.mem_get_info(self.device)
        return int(free), int(total)

    def driver_bytes(self) -> tuple[int | None, str | None]:
        """(bytes the driver has given this process, why not): NVML's view, context and libraries included."""
        try:
            import pynvml

            pynvml.nvmlInit()
            handles = handles_of(pynvml, self.device)
            if handles.is_part and handles.instance is None:
                return None, f"NVML does not tell: {OF_THE_CARD}"
            listed = pynvml.nvmlDeviceGetComputeRunningProcesses(handles.instance if handles.is_part else handles.card)
        except Exception as error:  # no library, no driver, no permission
            return None, f"NVML does not tell: {error}"
        own = next((process.usedGpuMemory for process in listed if process.pid == os.getpid()), None)
        if own is None:
            return None, "NVML does not list this process by its number, as in many containers"
        return int(own), None

    def limit(self, limit_bytes: int) -> None:
        """Refuse to reserve more than this from now on: a smaller card."""
        _, total = self.card()
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), self.device)

    def start_history(self) -> list[Block]:
        """Begin to record every block given and taken back; the blocks in use now. Raises NoHistoryError."""
        if torch.cuda.get_allocator_backend() != "native":
            raise NoHistoryError(f"the allocator {torch.cuda.get_allocator_backend()} keeps no history of its blocks")
        segments = self._snapshot(start=True)["segments"]
        try:
            return [
                (int(block["address"]), int(block["requested_size"]))
                for segment in segments
                if segment["device"] == self._index
                for block in segment["blocks"]
                if block["state"] == "active_allocated"
            ]
        except (KeyError, TypeError) as error:
            raise NoHistoryError(f"torch {torch.__version__} tells its blocks in another form: no {error}") from None

    def history(self) -> list[Event]:
        """What happened since `start_history`, in order. Raises NoHistoryError."""
        names = {"alloc": "alloc", "free_requested": "free"}  # a block counts as free from the request on
        try:
            trace = self._snapshot()["device_traces"][self._index]
            if len(trace) >= MAX_EVENTS:
                raise NoHistoryError(f"the step makes more than {MAX_EVENTS} blocks")
            return [(names[e["action"]], int(e["addr"]), int(e["size"])) for e in trace if e["action"] in names]
        except (KeyError, IndexError, TypeError) as error:
            raise NoHistoryError(f"torch {torch.__version__} tells its history in another form: no {error}") from None

    def stop_history(self) -> None:
        """Record no more."""
        torch.cuda.memory._record_memory_history(None)

    def mark(self) -> None:
        """Leave a mark in the history: a block of MARK_BYTES, given and at once taken back."""
        torch.empty(MARK_BYTES, dtype=torch.uint8, device=self.device)

    def clear_workspaces(self) -> None:
        """Free cuBLAS's workspaces, which it takes again at the next product."""
        clear: Any = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:
            clear()

    def _snapshot(self, start: bool = False) -> dict[str, Any]:
        """Both calls are private to torch, and their arguments have changed before. Raises NoHistoryError."""
        try:
            if start:  # no stacks: they cost time and are not needed
                torch.cuda.memory._record_memory_history("all", context=None, max_entries=MAX_EVENTS)
            taken: dict[str, Any] = torch.cuda.memory._snapshot()
        except (AttributeError, TypeError, RuntimeError) as error:
            raise NoHistoryError(f"torch {torch.__version__} records no history of its blocks: {error}") from None
        return taken


def allocator_settings() -> str | None:
    """What the user told torch's allocator in the environment, for instance expandable_segments."""
    return os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is the device's lack of memory, also one that a library met and named in its own words."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def holds_the_card() -> bool:
    """Whether this process has started CUDA, and so takes half a gigabyte of the card at least."""
    return bool(torch.cuda.is_initialized())
