"""From a device table to the host without waiting: pinned buffers, used again and again."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Waiting:
    """A copy on its way. `values()` waits for it; `release()` gives its buffer back once it has been read."""

    host: torch.Tensor
    event: torch.Event | None
    free: list[torch.Tensor]

    def ready(self) -> bool:
        """Whether the copy has arrived."""
        return self.event is None or bool(self.event.query())

    def values(self) -> torch.Tensor:
        """What was copied, on the host; valid until `release()`."""
        if self.event is not None:
            self.event.synchronize()
        return self.host

    def release(self) -> None:
        """Let the buffer be used for another copy."""
        if self.event is not None:
            self.free.append(self.host)


@dataclass
class HostCopies:
    """Copies of a device's tensors, and the buffers that have been read."""

    _free: list[torch.Tensor] = field(default_factory=list)

    def start(self, tensor: torch.Tensor) -> Waiting:
        """Copy a tensor to the host, on the current stream."""
        if tensor.device.type == "cpu":
            return Waiting(tensor.clone(), None, self._free)
        place = next((i for i, b in enumerate(self._free) if (b.shape, b.dtype) == (tensor.shape, tensor.dtype)), None)
        if place is None:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        else:
            host = self._free.pop(place)
        host.copy_(tensor, non_blocking=True)
        event = torch.Event(tensor.device)
        event.record()
        return Waiting(host, event, self._free)
