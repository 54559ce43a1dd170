"""ResNet-50 on synthetic images of 224 px, batches of 64: the target of the claim that a default scan ends in 120 s.

time mpdiag scan benchmarks/resnet50.py    (on a CUDA device)
"""

import torch
import torchvision

SYNTHETIC_DATA = True


def build_model() -> torch.nn.Module:
    return torchvision.models.resnet50()


def train_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    make = lambda: torch.randn(64, 3, 224, 224, generator=generator)
    return [(make(), torch.randint(1000, (64,), generator=generator)) for _ in range(4)]


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(output, target)


def build_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
