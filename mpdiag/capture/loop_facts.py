"""The facts about a training loop: one FP32 iteration of its own, watched, and what stands in the model after it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mpdiag.capture.loop_watch import LoopWatch
from mpdiag.capture.optimizer_facts import optimizer_groups, short
from mpdiag.errors import safe_text
from mpdiag.loop import HALF, Event, Layer, LoopEvent, LoopFacts
from mpdiag.target import Job, Start
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session

_CONVOLUTIONS = torch.nn.modules.conv._ConvNd
_BATCH_NORMS = torch.nn.modules.batchnorm._BatchNorm


def observe_loop(job: Job, start: Start, device: torch.device) -> tuple[LoopFacts, float | None]:
    """Run the first iteration in FP32 on a model of its own: (what the loop is made of, the largest input).

    The largest input is the largest magnitude that reaches a product of the model, None where none was seen. Only
    building the model and the optimizer may raise; what the watched iteration raises is the facts' reason, for the same
    iteration runs unwatched elsewhere.
    """
    with open_session(job, start, FP32_IEEE, device) as run:
        watch, reason = LoopWatch(run.model, run.optimizers.values()), None
        losses: tuple[str, ...] = ()
        compiled = _compiled(run.model)
        batch = run.place(start.batch(0))
        if compiled:
            reason = "the model is compiled: its code was not watched"
            losses = tuple(run.step(batch))
        else:
            try:
                with watch:
                    watch.inputs.follow(batch)
                    losses = tuple(run.step(batch))
            except Exception as error:
                reason = f"the watched iteration failed: {type(error).__name__}: {safe_text(error)}"
        parameters = [p for p in run.model.parameters() if p.requires_grad]
        dtypes = dict.fromkeys(short(p.dtype) for p in parameters)
        facts = LoopFacts(
            trainable={d: sum(p.numel() for p in parameters if short(p.dtype) == d) for d in dtypes},
            groups=optimizer_groups(run.model, run.optimizers),
            layers=tuple(_layers(run.model)),
            half_norms=tuple(_half_norms(run.model)),
            events=(*(Event(LoopEvent.COMPILED, name) for name in compiled), *watch.events.values()),
            events_reason=reason,
            losses=losses,
            loss_reduction=next(iter(watch.reductions)) if len(watch.reductions) == 1 else None,
            target_abs_max=watch.targets.abs_max,
        )
        return facts, watch.inputs.abs_max


def _compiled(model: torch.nn.Module) -> list[str]:
    return [name or "the model" for name, m in model.named_modules() if type(m).__name__ == "OptimizedModule"]


def _half_norms(model: torch.nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.training:
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if any(short(t.dtype) in HALF for t in own):
                yield name or type(module).__name__


def _layers(model: torch.nn.Module) -> Iterator[Layer]:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.nn.Linear):
            yield Layer(name or kind, kind, module.in_features, module.out_features, module.in_features)
        elif isinstance(module, _CONVOLUTIONS):
            taken, given = module.in_channels // module.groups, module.out_channels // module.groups
            window = 1
            for size in module.kernel_size:
                window *= size
            yield Layer(name or kind, kind, taken, given, taken * window)
