"""What all measurements say of an arm's tensor cores: its trace, counters, pipes and the times of other arms."""

from __future__ import annotations

from dataclasses import replace

from mpdiag.costs.kernels import ArmKernels
from mpdiag.costs.ladder import NOT_COUNTED, ladder_of
from mpdiag.costs.record import Costs
from mpdiag.verify.channels_last import told_by_its_arm


def with_all_evidence(costs: Costs) -> tuple[ArmKernels, ...]:
    """Every traced arm with all levels of evidence side by side."""
    pipes = {each.arm: each for each in costs.gpm}
    counted = {each.arm: each for each in costs.counters}
    why = costs.counters_reason or NOT_COUNTED.format(arms=", ".join(counted))

    def told(kernels: ArmKernels) -> ArmKernels:
        ladder = ladder_of(
            kernels, pipes.get(kernels.arm), counted.get(kernels.arm), costs.flops, why, costs.gpm_reason
        )
        return replace(told_by_its_arm(kernels, costs), ladder=ladder)

    return tuple(map(told, costs.kernels))
