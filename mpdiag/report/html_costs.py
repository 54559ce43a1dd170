"""What the arms cost, on the page: which sections there are, and one line for all that was not measured."""

from __future__ import annotations

from typing import Any

from mpdiag.costs.record import NOT_MEASURED, Costs
from mpdiag.diagnosis import Diagnosis
from mpdiag.report.html_energy import energy_view
from mpdiag.report.html_memory import memory_context
from mpdiag.report.html_speed import speed_view
from mpdiag.report.html_tensor_cores import tensor_core_context

PREFIX = "not measured: "  # some reasons say it themselves


def costs_context(diagnosis: Diagnosis) -> dict[str, Any]:
    """What the sections on speed and energy, tensor cores, and memory need.

    cost_sections: (id, title, template) of those with anything measured, in the order of the page. costs_missing: one
    line, None where nothing is missing.
    """
    run = diagnosis.verification
    costs = run.costs if run is not None else NOT_MEASURED
    speed, energy = speed_view(diagnosis), energy_view(run)
    sections = (
        ("speed", "Speed", "speed.html", bool(speed or energy)),
        ("tensor-cores", "Tensor cores", "tensor_cores.html", _has_kernels(costs)),
        ("memory", "Memory", "memory.html", _has_memory(costs) or _has_batch(costs)),
    )
    return {
        "cost_sections": [(name, title, template) for name, title, template, there in sections if there],
        "costs_missing": missing_line(costs),
        "speed_view": speed,
        "energy_view": energy,
        **tensor_core_context(
            costs.kernels, costs.flops, costs.kernels_reason, costs.ceilings, costs.ceilings_reason, costs.flops_reason
        ),
        **memory_context(costs),
    }


def missing_line(costs: Costs) -> str | None:
    """What was not measured, grouped by reason; None where nothing is missing, or the record is older than costs."""
    if costs == NOT_MEASURED:
        return None
    by_reason: dict[str, list[str]] = {}
    for what, there, reason in _parts(costs):
        if not there:
            by_reason.setdefault((reason or "no reason was recorded").removeprefix(PREFIX), []).append(what)
    told = "; ".join(f"{_list(names)}: {reason}" for reason, names in by_reason.items())
    return told[:1].upper() + told[1:] if told else None


def _parts(costs: Costs) -> tuple[tuple[str, bool, str | None], ...]:
    """(what, whether anything of it was measured, why not)."""
    memory = next((use.reason for use in costs.memory), costs.memory_reason)
    energy = next((use.reason for use in costs.energy), costs.energy_reason)
    section = _has_memory(costs) or _has_batch(costs)  # which then tells what it lacks itself
    return (
        ("step time", costs.timing is not None, costs.timing_reason),
        ("energy", any(use.joules_per_sample is not None for use in costs.energy), energy),
        ("tensor cores", _has_kernels(costs), next((k.reason for k in costs.kernels), costs.kernels_reason)),
        ("peak memory", section, memory),
        ("the largest batch", section, costs.largest_batch_reason),
    )


def _has_kernels(costs: Costs) -> bool:
    return any(each.time is not None or each.ladder is not None for each in costs.kernels)


def _has_memory(costs: Costs) -> bool:
    return any(use.peak_allocated_bytes is not None for use in costs.memory)


def _has_batch(costs: Costs) -> bool:
    return bool(costs.largest_batch)


def _list(names: list[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])
