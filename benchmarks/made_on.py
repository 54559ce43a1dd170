"""Where and when a benchmark's record was made, for the record and for its page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

UNDATED = "its record has no date"  # those of before this was written down


def origin(command: str, device: torch.device) -> dict[str, Any]:
    """What every record begins with."""
    from mpdiag.device.environment import describe

    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "created": now, "environment": vars(describe(device))}


def made_on(record: dict[str, Any], rehearsed: str = "") -> str:
    """The first words of a page: command, machine, torch, when. rehearsed: what to say of a run without a GPU."""
    machine = record["environment"]
    if machine.get("gpu"):
        on = f"{machine['gpu']}, driver {machine['driver']}"
    else:
        on = f"a CPU, {machine['cpu_threads']} threads{rehearsed}"
    return f"`{record['command']}` on {on}, torch {machine['torch']} ({record.get('created') or UNDATED})"
