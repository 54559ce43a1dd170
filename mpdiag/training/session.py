"""One training run, step by step: mpdiag owns backward, the scaler and the optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mpdiag.device.random_state import default_dtype_kept
from mpdiag.errors import MpdiagError, UsageError
from mpdiag.target import Job, Start
from mpdiag.target.batches import map_tensors
from mpdiag.target.job import ONLY, Optimizers
from mpdiag.target.user_code import guarded
from mpdiag.training.islands import fp32_islands, lift_islands
from mpdiag.training.precision import Precision, Region, in_force

_SEVERAL_LOSSES = (
    "return one tensor, such as their sum; for several optimizers define compute_losses(model, batch), which yields "
    "(optimizer name, loss)"
)
_NO_GRADIENT = (
    "in some steps no parameter of an optimizer has a gradient, where GradScaler.step raises: in your own loop, call "
    "scaler.step(optimizer) only where one has, and scaler.update() only after such a call"
)
IMAGE_DIMENSIONS = 4  # batch, channels, height, width: what channels_last is defined for


class Session:
    """A model in training under one precision. Made by `open_session`.

    `step(batch)` does one iteration and returns the losses by name as detached scalars on the device, without
    synchronizing. `loss_dtype` is the type the last loss came in. Steps are for inside `in_force` of its precision.
    """

    def __init__(self, job: Job, model: torch.nn.Module, optimizers: Optimizers, precision: Precision,
                 device: torch.device, region: Region) -> None:  # fmt: skip
        self.job = job
        self.model = model
        self.called: Any = torch.compile(model) if precision.compiled else model
        self.optimizers = optimizers
        self.precision = precision
        self.device = device
        self.region = region
        self.scaler = precision.scaler(device)
        self.loss_dtype: torch.dtype | None = None
        self._trains = False  # whether a gradient has come yet

    def place(self, batch: Any) -> Any:
        """A batch as this run takes it: a copy on the device, floating tensors in half for a pure policy.

        Tensors that ask for a gradient still do, and keep it to themselves. Raises UserCodeError, of a lack of memory
        too, which may show here first.
        """

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if self.precision.pure and tensor.is_floating_point():
                return tensor.to(self.device, self.precision.autocast, copy=True)
            if self.precision.channels_last and tensor.dim() == IMAGE_DIMENSIONS:
                return tensor.to(self.device, copy=True, memory_format=torch.channels_last)
            return tensor.to(self.device, copy=True)

        with guarded("placing a batch on the device"):
            return map_tensors(lambda t: move(t.detach()).requires_grad_() if t.requires_grad else move(t), batch)

    def step(self, batch: Any) -> dict[str, torch.Tensor]:
        """One iteration on a batch that `place` has prepared."""
        losses: dict[str, torch.Tensor] = {}
        scaled: set[int] = set()
        self.model.zero_grad(set_to_none=True)  # before the forward, as users do: else they lie beside its activations
        for name, loss in self._losses(batch):
            if losses:  # an earlier part's; after the last part they stay, for who reads them between steps
                self.model.zero_grad(set_to_none=True)
            self._backward(loss)
            self._trains = self._trains or any(p.grad is not None for p in self._parameters())
            for optimizer in self._optimizers_of(name):
                with guarded("stepping the optimizer"):
                    self._move(optimizer, scaled)
            losses[name] = loss.detach()
        self._require(losses)
        if not self._trains:
            raise UsageError(
                "loss-of-another-model",
                f"{self.job.source}: the loss gave none of the model's parameters a gradient, so nothing is trained",
                "compute it with the model that the loss function is given, not with one made elsewhere",
            )
        if self.scaler is not None and scaled:
            self.scaler.update()
        return losses

    def _move(self, optimizer: torch.optim.Optimizer, scaled: set[int]) -> None:
        """Step an optimizer. scaled: those that the scaler has stepped since its last update."""
        if self.scaler is None or self._idle(optimizer):
            optimizer.step()
            return
        if id(optimizer) in scaled:
            self.scaler.update()  # a scaler steps each optimizer once between updates
            scaled.clear()
        scaled.add(id(optimizer))
        self.scaler.step(optimizer)

    def _parameters(self) -> Iterator[torch.Tensor]:
        """Those that may be trained: the model's, and what else the optimizers hold."""
        yield from self.model.parameters()
        for optimizer in self.optimizers.values():
            yield from (p for group in optimizer.param_groups for p in group["params"])

    def _idle(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer has nothing to step with, as one of experts that no sample was routed to.

        FP32 takes an empty step then; a scaler raises. One that moves copies of the model's weights may have gradients
        elsewhere, still scaled.
        """
        if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            return False
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not held <= {id(p) for p in self.model.parameters()}:
            return False
        self.job.note(_NO_GRADIENT)
        return True

    def gradients(self, batch: Any) -> dict[str, torch.Tensor]:
        """The losses of an iteration, whose gradients are added up, still scaled; no optimizer steps."""
        self.model.zero_grad(set_to_none=True)
        losses: dict[str, torch.Tensor] = {}
        for name, loss in self._losses(batch):
            self._backward(loss)
            losses[name] = loss.detach()
        self._require(losses)
        return losses

    def _losses(self, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Each (name, loss) of an iteration when it is asked for."""
        with guarded("computing the loss"), self.region():
            parts = self._parts(batch)
        while True:
            with guarded("computing the loss"), self.region():
                part = next(parts, None)
            if part is None:
                return
            yield self._checked(part)

    def _backward(self, loss: torch.Tensor) -> None:
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        with guarded("running backward"):
            scaled.backward()

    def _require(self, losses: dict[str, torch.Tensor]) -> None:
        if not losses:
            raise UsageError("no-loss", f"{self.job.source}: compute_losses yielded nothing", "yield (name, loss)")

    def _parts(self, batch: Any) -> Iterator[Any]:
        """The (name, loss) pairs of one iteration, computed as they are asked for if the job yields them."""
        losses = self.job.losses(self.called, batch)
        if isinstance(losses, torch.Tensor) or not isinstance(losses, Iterable):
            raise UsageError(
                "no-loss",
                f"{self.job.source}: compute_losses gave {type(losses).__name__}",
                "yield (optimizer name, loss)",
            )
        return iter(losses)

    def evaluate(self) -> dict[str, float] | None:
        """The user's metric under this run's precision, in evaluation mode; None when the job has none."""
        if self.job.evaluate is None:
            return None
        self.model.eval()
        try:
            with guarded("evaluating the metric"), self.job.timed("evaluate"), torch.no_grad(), self.region():
                return self.job.evaluate(self.model)
        finally:
            self.model.train()

    def _optimizers_of(self, name: str) -> list[torch.optim.Optimizer]:
        if name in self.optimizers:
            return [self.optimizers[name]]
        if name == ONLY:
            return list(self.optimizers.values())
        raise UsageError(
            "no-optimizer",
            f"{self.job.source}: compute_losses yielded {name!r}, build_optimizers has {sorted(self.optimizers)}",
            "use the same names in both",
        )

    def _checked(self, part: Any) -> tuple[str, torch.Tensor]:
        """(name, loss) of what the job yielded, or the error that says what is wrong with it."""
        where = self.job.source
        if not (isinstance(part, tuple) and len(part) == 2):
            raise UsageError("no-loss", f"{where}: compute_losses yielded {type(part).__name__}", "yield (name, loss)")
        name, loss = part
        if not isinstance(loss, torch.Tensor):
            raise UsageError(
                "loss-not-a-tensor",
                f"{where}: the loss is {type(loss).__name__}",
                _SEVERAL_LOSSES
                if isinstance(loss, Mapping | list | tuple)
                else "return the loss itself, a scalar tensor (not None, and not .item())",
            )
        if loss.numel() != 1:
            raise UsageError(
                "loss-not-scalar",
                f"{where}: the loss has shape {tuple(loss.shape)}",
                "reduce it to one number, for example with .mean()",
            )
        if not loss.requires_grad:
            raise UsageError(
                "loss-no-grad",
                f"{where}: the loss does not require a gradient",
                "compute it from the model's output, outside torch.no_grad() and without .detach()",
            )
        self.loss_dtype = loss.dtype
        return name, loss.squeeze()


@contextmanager
def open_session(job: Job, start: Start, precision: Precision, device: torch.device) -> Iterator[Session]:
    """A fresh run from a start; its policy is in force until the block ends."""
    with in_force(precision, device) as region, build_session(job, start, precision, device, region) as session:
        yield session


@contextmanager
def build_session(
    job: Job, start: Start, precision: Precision, device: torch.device, region: Region
) -> Iterator[Session]:
    """A fresh run, for callers that put its policy in force; its FP32 islands last as long as the block.

    So does a default type that the job sets: the next run begins with the one that this began with.
    """
    with default_dtype_kept(), _built(job, start, precision, device, region) as session:
        built = torch.get_default_dtype()
        try:
            yield session
        finally:
            if torch.get_default_dtype() != built:  # set while it builds, it is the job's way and the same in every run
                found = str(torch.get_default_dtype())
                job.note(f"the target sets torch's default dtype to {found} during a run; the next begins with {built}")


@contextmanager
def _built(job: Job, start: Start, precision: Precision, device: torch.device, region: Region) -> Iterator[Session]:
    model = job.build(start, device)
    with guarded("converting the model"):
        if precision.pure:
            model = model.to(precision.autocast)
        if precision.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
    optimizers = job.optimizers(model)
    _check_optimizers(job, model, optimizers)
    if not optimizers:
        raise UsageError("target-no-optimizer", f"{job.source}: build_optimizers gave none", "return at least one")
    islands = fp32_islands(model, precision.keep_fp32)
    try:
        yield Session(job, model, optimizers, precision, device, region)
    finally:
        lift_islands(islands)  # the job may build one and the same object again


def _check_optimizers(job: Job, model: torch.nn.Module, optimizers: Optimizers) -> None:
    ours = {id(parameter) for parameter in model.parameters()}
    held = [p for o in optimizers.values() for group in o.param_groups for p in group["params"]]
    if optimizers and not any(id(parameter) in ours for parameter in held):
        raise UsageError(
            "optimizer-moves-nothing",
            f"{job.source}: the optimizer holds none of the model's parameters, so nothing would be trained",
            "build it from the model it is given: build_optimizer(model)",
        )


def total(losses: dict[str, torch.Tensor]) -> float:
    """The sum of a step's losses as a number. It waits for the device, which may only then tell of a failed step."""
    with guarded("reading the loss"):
        return float(sum(value.double() for value in losses.values()))


def require_finite(value: float, step: int, source: str) -> None:
    """Raise MpdiagError `loss-not-finite` when the FP32 job itself has no finite loss."""
    if value != value or value in (float("inf"), float("-inf")):
        raise MpdiagError(
            "loss-not-finite",
            f"{source}: the FP32 loss is {value} at step {step}",
            "mend the FP32 job first: lower learning rate, check inputs for NaN; mixed precision cannot help",
        )
