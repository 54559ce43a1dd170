"""The tables of planted_faults with the jobs of every part entered: each part does so on import."""

from __future__ import annotations

import planted_constants  # noqa: F401
import planted_costs  # noqa: F401
import planted_gradients  # noqa: F401
import planted_healthy  # noqa: F401
import planted_loops  # noqa: F401
import planted_operations  # noqa: F401
import planted_operators  # noqa: F401
import planted_range  # noqa: F401
from planted_faults import HEALTHY, PLANTS

__all__ = ["HEALTHY", "PLANTS"]
