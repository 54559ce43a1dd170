"""What the training loop is made of: optimizers, stored types, layers, and what the job's own code does in a step.

Saved with the capture (`capture.loop` in the JSON). Numbers alone: nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

HALF = ("float16", "bfloat16")


class LoopEvent(StrEnum):
    """What the job's own code was seen to do.

    autocast: opens a region (dtype: its type). scaler: scales the loss itself. function: a torch.autograd.Function
    without custom_fwd (name: its class). in_place: an operator of autocast's lists in a form that autocast skips
    (`exp_`, `out=`). penalty: a gradient with a graph of its own. backward_inside: a backward pass in an autocast
    region. average: a moving average kept in 16 bits (value: 1 minus its decay). counter: something added to a 16-bit
    buffer, step by step. compiled: a torch.compile'd module. repeats: the rows of a 16-bit embedding (value: the most
    look-ups of one row in one call). scaler_step: steps an optimizer by a GradScaler of its own. clipped_scaled:
    clips gradients that carry a loss scale. mixed_scales: a backward pass that adds such to gradients without one.
    """

    AUTOCAST = "autocast"
    SCALER = "scaler"
    FUNCTION = "function"
    IN_PLACE = "in_place"
    PENALTY = "penalty"
    BACKWARD_INSIDE = "backward_inside"
    AVERAGE = "average"
    COUNTER = "counter"
    COMPILED = "compiled"
    REPEATS = "repeats"
    SCALER_STEP = "scaler_step"
    CLIPPED_SCALED = "clipped_scaled"
    MIXED_SCALES = "mixed_scales"


@dataclass(frozen=True)
class Event:
    """One such place, once however often it ran. source: the user's file:line; value: see LoopEvent."""

    what: LoopEvent
    name: str
    source: str | None = None
    dtype: str | None = None
    value: float | None = None


@dataclass(frozen=True)
class OptimizerGroup:
    """The parameters of one type in one param group of one optimizer.

    optimizer: its name in the job; kind: its class. elements: of these parameters; example: the first one's name.
    decoupled: its weight decay multiplies the weights, as AdamW's does. fused: one kernel computes the update, in FP32
    whatever the types. betas_dtype: where the betas are tensors. state: the type of each of its tensors of the
    weight's shape after a step. whole_updates: it keeps an FP32 copy of the weights, or rounds stochastically.
    None: the optimizer has no such setting.
    """

    optimizer: str
    kind: str
    dtype: str
    elements: int
    example: str
    lr: float | None = None
    eps: float | None = None
    betas: tuple[float, ...] | None = None
    betas_dtype: str | None = None
    weight_decay: float | None = None
    decoupled: bool = False
    fused: bool = False
    state: dict[str, str] | None = None
    whole_updates: bool = False


@dataclass(frozen=True)
class Layer:
    """A module that multiplies matrices: a linear layer or a convolution.

    inner: what one output element adds up (in channels times kernel, of a group); features_in, features_out: the
    channels, of one group, which the tensor cores' tiles are cut from.
    """

    name: str
    module_type: str
    features_in: int
    features_out: int
    inner: int


@dataclass(frozen=True)
class LoopFacts:
    """The training loop, from one FP32 iteration of its own.

    trainable: elements of the trainable parameters by type. half_norms: batch norms in training mode whose weights or
    statistics are 16-bit. events_reason: why the code's own doings were not seen, where they were not. losses: their
    names in the order they came, which are those of the optimizers that step on them; empty where it was not seen.
    loss_reduction: "mean" or "sum" over the samples, where every loss was seen to be that, else None. target_abs_max:
    the largest number of the batch that the model's output was compared with, None where no such difference was seen.
    """

    trainable: dict[str, int]
    groups: tuple[OptimizerGroup, ...] = ()
    layers: tuple[Layer, ...] = ()
    half_norms: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    events_reason: str | None = None
    losses: tuple[str, ...] = ()
    loss_reduction: str | None = None
    target_abs_max: float | None = None

    @property
    def optimizers(self) -> tuple[str, ...]:
        """The names of the optimizers, each once."""
        return tuple(dict.fromkeys(group.optimizer for group in self.groups))

    def of(self, what: LoopEvent) -> tuple[Event, ...]:
        """The events of one sort."""
        return tuple(event for event in self.events if event.what is what)


_LOSS = "loss = compute_loss(model, batch)"


def for_all_optimizers(snippet: str, loop: LoopFacts | None) -> str:
    """The training code for one optimizer, for all of a job that has several: each steps on its own loss, in turn.

    Where one loss moves them all, they step after it. A loss scale is one for all, and updated once.
    """
    names = loop.optimizers if loop is not None else ()
    lines = snippet.rstrip().splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith(("with torch.autocast", _LOSS))), None)
    if loop is None or first is None or len(names) < 2 or _LOSS not in snippet:
        return snippet
    head, body = lines[:first], [line for line in lines[first:] if "zero_grad" not in line and "update()" not in line]
    update = [f"{line}  # once, after all of them" for line in lines if "update()" in line]
    step = next(line for line in body if "optimizer" in line)
    if loop.losses and not set(loop.losses) <= set(names):
        each = ["for optimizer in optimizers.values():", "    " + step]
        return "\n".join([*head, *body[: body.index(step)], *each, *update, "model.zero_grad()", ""])
    turns = ", ".join(f'"{name}"' if name.isidentifier() else repr(name) for name in loop.losses or names)
    body = [line.replace(_LOSS, "_, loss = next(losses)") for line in body if line is not step]
    turn = [*body, step.replace("optimizer", "optimizers[name]"), "model.zero_grad()"]
    return "\n".join(
        [
            *head,
            "losses = iter(compute_losses(model, batch))",
            f"for name in ({turns}):",
            *("    " + line for line in turn),
            *update,
            "",
        ]
    )
