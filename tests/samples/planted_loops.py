"""Training loops with one planted fault each, and such as look like one; tables and forms are planted_faults'."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target.job import ONLY, Job
from planted_faults import CLASSES, ROWS, WIDTH, classify, features, healthy, images, job, linear, plant

HALF, BRAIN = torch.float16, torch.bfloat16


def net(width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))


def cast(dtype: torch.dtype, batch: Callable[[], Any] = features) -> Callable[[], Any]:
    return lambda: tuple(t.to(dtype) if t.is_floating_point() else t for t in batch())


def in_fp32(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


# --- MP501 to MP509: what is kept in 16 bits


@plant("MP501", "warning", "0.weight", "MP205", "MP504")
def adamw_on_bfloat16_weights() -> Job:
    return job(lambda: net().to(BRAIN), cast(BRAIN), in_fp32)


@plant("MP501", "error", "2.weight", "MP502", "MP205")
def a_head_in_fp16_and_a_body_in_fp32() -> Job:
    class Halved(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[2](self[1](self[0](x)).to(self[2].weight.dtype))

    def build() -> nn.Module:
        model = Halved(*net())
        model[2].half()
        return model

    return job(build, loss=in_fp32, optimizer=sgd)


@plant("MP502", "error", "the model", "MP501", "MP205")
def half_and_autocast() -> Job:
    def regional(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast(batch[0].device.type, HALF):  # <-
            y = model(batch[0])
        return F.cross_entropy(y.float(), batch[1])

    return job(lambda: net().half(), cast(HALF), regional, sgd)


@plant("MP503", "warning", "1", "MP501", "MP502", "MP205")
def a_convolutional_net_called_half_of() -> Job:
    build = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, CLASSES)).half()
    return job(build, cast(HALF, images), in_fp32, sgd)


@plant("MP504", "warning", "0.weight", "MP501", "MP205")
def a_weight_decay_that_bfloat16_rounds_away() -> Job:
    decaying = lambda parameters, lr: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    return job(lambda: net().to(BRAIN), cast(BRAIN), in_fp32, decaying)


def averaged(dtype: torch.dtype, step: Callable[[torch.Tensor, torch.Tensor], None]) -> Job:
    """A student and its average, which the loss function moves, as in self-distillation."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = net()
            self.average = copy.deepcopy(self.student).to(dtype).requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                for kept, new in zip(self.average.parameters(), self.student.parameters(), strict=True):
                    step(kept, new)
            return self.student(x) + self.average(x.to(dtype)).float()

    return job(Pair)


@plant("MP505", "warning", "average.0.weight")
def an_average_of_weights_in_bfloat16() -> Job:
    def step(kept: torch.Tensor, new: torch.Tensor) -> None:
        kept.mul_(0.999).add_(new.to(kept.dtype), alpha=0.001)  # <-

    return averaged(BRAIN, step)


@plant("MP505", "warning", "average.0.weight")
def an_average_of_weights_in_fp16_by_lerp() -> Job:
    def step(kept: torch.Tensor, new: torch.Tensor) -> None:
        kept.lerp_(new.to(kept.dtype), 1e-4)  # <-

    return averaged(HALF, step)


@plant("MP506", "error", "0.weight", "MP501", "MP502", "MP504", "MP507", "MP205")
def adam_on_fp16_weights() -> Job:
    return job(lambda: net().half(), cast(HALF), in_fp32)


@plant("MP507", "error", "0.weight", "MP501", "MP502", "MP504", "MP205", "MP201")
def a_second_moment_that_vanishes() -> Job:
    careful = lambda parameters, lr: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-4)
    small = lambda model, batch: 1e-3 * in_fp32(model, batch)
    return job(lambda: nn.Sequential(nn.Linear(WIDTH, CLASSES, bias=False)).half(), cast(HALF), small, careful)


@plant("MP508", "warning", ONLY)
def betas_in_bfloat16() -> Job:
    def optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:
        made = torch.optim.Adam(parameters, lr=1e-3, foreach=False)
        made.param_groups[0]["betas"] = tuple(torch.tensor(b, dtype=BRAIN) for b in (0.9, 0.999))
        return made

    return job(net, optimizer=optimizer)


@plant("MP509", "warning", "seen")
def batches_counted_in_fp16() -> Job:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.register_buffer("seen", torch.zeros((), dtype=HALF))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1  # <-
            return self.net(x)

    return job(Counting)


# --- MP510 to MP518: what the code does


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


class DoubledUnderAutocast(Doubled):
    forward = staticmethod(torch.amp.custom_fwd(Doubled.forward, device_type="cuda"))
    backward = staticmethod(torch.amp.custom_bwd(Doubled.backward, device_type="cuda"))


@plant("MP510", "info", "Doubled")
def a_function_without_the_decorators_of_autocast() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(Doubled.apply(x.requires_grad_()))  # <-

    return job(Net)


@plant("MP511", "info", "exp_")
def a_spread_by_exp_in_place() -> Job:
    class Sampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread, self.head = (nn.Linear(WIDTH, n) for n in (WIDTH, WIDTH, CLASSES))
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            spread = self.spread(x).mul(0.5).exp_()  # <-
            return self.head(self.mean(x) + spread * torch.randn_like(spread))

    return job(Sampled)


@plant("MP512", "info", "the loss")
def a_critic_with_a_gradient_penalty() -> Job:
    def penalised(model: nn.Module, batch: Any) -> torch.Tensor:
        x = batch[0].requires_grad_()
        y = model(x)[:, 0].float()
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)  # <-
        return y.pow(2).mean() + (slope.norm(dim=1) - 1).pow(2).mean()

    return job(net, loss=penalised)


@plant("MP513", "warning", "the loss")
def an_adversarial_step_inside_the_region() -> Job:
    def adversarial(model: nn.Module, batch: Any) -> torch.Tensor:
        x, labels = batch
        with torch.autocast(x.device.type, HALF):
            (slope,) = torch.autograd.grad(classify(model, (x.requires_grad_(), labels)), x)  # <-
            return classify(model, (x.detach() + 0.1 * slope.sign(), labels))

    return job(net, loss=adversarial)


@plant("MP514", "info", "the model")
def a_compiled_model() -> Job:
    return job(lambda: torch.compile(net(), backend="eager"))


def scaled(dtype: torch.dtype) -> Job:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast(batch[0].device.type, dtype):
            raw = classify(model, batch)
        return scaler.scale(raw)

    return job(net, loss=loss)


@plant("MP515", "info", "GradScaler", "MP516")
def a_scaler_beside_bfloat16() -> Job:
    return scaled(BRAIN)


@plant("MP516", "warning", "the loss")
def a_loss_that_comes_scaled() -> Job:
    return scaled(HALF)


@plant("MP517", "warning", "rows.weight", "MP501", "MP504", "MP205")
def an_embedding_in_bfloat16_of_two_rows() -> Job:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.head = nn.Embedding(2, WIDTH, dtype=BRAIN), nn.Linear(WIDTH, CLASSES)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.rows(ids).float().mean(1))  # <-

    return job(Bag, lambda: (torch.randint(2, (ROWS, 100)), torch.randint(CLASSES, (ROWS,))))


@plant("MP518", "warning", "the optimizer")
def a_learning_rate_of_zero() -> Job:
    return job(net, lr=0.0)


def with_a_critic(train: Callable[[Any, torch.optim.Optimizer, list[torch.Tensor], list[Any]], None]) -> Job:
    """A job whose loss function trains a critic itself, by a GradScaler of its own; two micro-batches a step."""
    critic = nn.Linear(WIDTH, 1)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)
    scaler_on = functools.cache(lambda kind: torch.amp.GradScaler(kind, init_scale=256.0))

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        device = batch[0].device
        critic.to(device)
        halves = [part.detach() for part in batch[0].chunk(2)]
        losses = [critic(half).pow(2).mean() for half in halves]
        train(scaler_on(device.type), optimizer, losses, list(critic.parameters()))
        optimizer.zero_grad(set_to_none=False)
        return classify(model, batch)

    return job(net, loss=loss)


@plant("MP519", "warning", "GradScaler")
def a_critic_clipped_while_its_gradients_are_scaled() -> Job:
    def train(scaler: Any, optimizer: Any, losses: list[torch.Tensor], parameters: list[Any]) -> None:
        for loss in losses:
            scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)  # <-
        scaler.step(optimizer)
        scaler.update()

    return with_a_critic(train)


@plant("MP520", "warning", "GradScaler")
def a_critic_unscaled_at_every_micro_batch() -> Job:
    def train(scaler: Any, optimizer: Any, losses: list[torch.Tensor], parameters: list[Any]) -> None:
        for loss in losses:
            scaler.scale(loss).backward()  # <-
            scaler.unscale_(optimizer)
            scaler.update()
        scaler.step(optimizer)
        scaler.update()

    return with_a_critic(train)


# --- what looks like a fault and is none


@healthy()
def a_critic_that_is_unscaled_and_clipped_in_order() -> Job:
    def train(scaler: Any, optimizer: Any, losses: list[torch.Tensor], parameters: list[Any]) -> None:
        for loss in losses:
            scaler.scale(loss).backward()
            for p in parameters:
                p.grad /= 1.0  # as one divides by the number of micro-batches
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_value_(parameters, 1.0)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()

    return with_a_critic(train)


@healthy()
def a_frozen_body_in_bfloat16_with_an_fp32_adapter() -> Job:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(WIDTH, WIDTH).to(BRAIN).requires_grad_(False)
            self.down, self.up, self.head = linear(WIDTH, 2, 1.0), linear(2, WIDTH, 1.0), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x.to(BRAIN)).float() + self.up(self.down(x)))

    adapted = job(Adapted)
    everything = lambda model: {ONLY: torch.optim.AdamW(model.parameters(), lr=1e-3)}  # frozen ones, too
    return replace(adapted, build_optimizers=everything)


@healthy()
def a_frozen_batch_norm_in_bfloat16() -> Job:
    class Taught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.BatchNorm1d(WIDTH).to(BRAIN).requires_grad_(False)
            self.student = net()

        def train(self, mode: bool = True) -> Taught:
            super().train(mode)
            self.teacher.eval()
            return self

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.student(x + self.teacher(x.to(BRAIN)).float())

    return job(Taught)


@healthy()
def boxes_in_pixels_matched_by_their_distance() -> Job:
    def matched(model: nn.Module, batch: Any) -> torch.Tensor:
        found = model(batch[0]).float()
        near = torch.cdist(found, batch[1]).argmin(0)
        return (found[near] - batch[1]).abs().mean() / 1000 + (found @ batch[1].T).mean() * 1e-6

    boxes = lambda: (torch.randn(ROWS, WIDTH), 2000 * torch.rand(ROWS, CLASSES))
    return job(net, boxes, matched)


@healthy()
def an_average_of_weights_in_fp32() -> Job:
    return averaged(torch.float32, lambda kept, new: kept.lerp_(new, 1e-4))  # type: ignore[arg-type,func-returns-value]


@healthy()
def a_fast_average_in_bfloat16() -> Job:
    return averaged(BRAIN, lambda kept, new: kept.lerp_(new.to(BRAIN), 0.1))  # type: ignore[arg-type,func-returns-value]


@healthy()
def weights_averaged_by_torch() -> Job:
    average: dict[int, Any] = {}

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        kept = average.setdefault(
            id(model),
            torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn()),
        )
        kept.update_parameters(model)
        return classify(model, batch)

    return job(net, loss=loss)


@healthy()
def a_function_with_the_decorators_of_autocast() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(DoubledUnderAutocast.apply(x.requires_grad_()))

    return job(Net)


@healthy()
def pixels_in_0_to_255_that_the_model_standardises() -> Job:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(288, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv((x - 127.5) / 75).relu().flatten(1))

    return job(Standardised, lambda: images(255.0))


@healthy()
def bytes_that_the_loss_function_scales() -> Job:
    def raw() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(256, (ROWS, 3, 8, 8), dtype=torch.uint8), torch.randint(CLASSES, (ROWS,))

    build = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, CLASSES))
    return job(build, raw, lambda model, batch: F.cross_entropy(model(batch[0].float() / 255), batch[1]))


@healthy()
def features_of_any_size_behind_a_batch_norm() -> Job:
    return job(lambda: nn.Sequential(nn.BatchNorm1d(WIDTH), *net()), lambda: features(5000.0))


@healthy()
def a_layer_scale_of_a_millionth() -> Job:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
            self.gamma = nn.Parameter(torch.full((WIDTH,), 1e-6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.lift(x)
            return self.head(x + self.gamma * self.mix(x))

    return job(Scaled)


@healthy()
def a_fused_optimizer() -> Job:
    return job(net, optimizer=lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, fused=True))


@healthy("MP205")  # it watches what is stored, and cannot know of the copies
def master_weights_that_the_job_keeps_itself() -> Job:
    class Masters(torch.optim.SGD):
        """Steps FP32 copies and writes them back."""

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    master = self.state[p].setdefault("master", p.detach().float().clone())
                    master -= group["lr"] * p.grad.float()
                    p.copy_(master)

    return replace(
        job(lambda: net().to(BRAIN), cast(BRAIN), in_fp32),
        build_optimizers=lambda model: {ONLY: Masters(model.parameters(), lr=0.1)},
    )
