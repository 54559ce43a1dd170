"""What a scan found, put in force in a training job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpdiag.plan import SavedPlan, read_plan

if TYPE_CHECKING:
    import torch

Model = TypeVar("Model", bound="torch.nn.Module")


def apply(model: Model, plan: str | Path | Mapping[str, Any] | SavedPlan | Iterable[str]) -> Model:
    """Put a plan in force: the modules it names compute in FP32 inside autocast. Returns the model itself.

    plan: the path of a plan.json that `mpdiag scan` wrote, its content as a dict, or the names of modules. Outside
    autocast nothing changes, to the bit. A module that already is an island stays one; state_dict, copies and pickles
    work as before. The loss scale is the caller's: the plan has it as log2_scale. Raises UsageError `no-such-file`,
    `not-a-plan`, `unknown-module`, `island-not-fp32` or `island-scripted`, and has changed nothing then.
    """
    from mpdiag.training.islands import fp32_islands  # torch: only who applies a plan needs it

    if isinstance(plan, str | Path | Mapping):
        plan = read_plan(plan)
    fp32_islands(model, plan.keep_fp32 if isinstance(plan, SavedPlan) else tuple(plan))
    return model
