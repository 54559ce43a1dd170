"""FP16 autocast with a GradScaler; the second iteration overflows and is skipped."""

from types import SimpleNamespace

import torch
from torch import nn


def build(device):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(device)
    scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=2.0**12)
    return SimpleNamespace(model=model, optimizers=[torch.optim.SGD(model.parameters(), lr=0.1)], scaler=scaler)


def step(loop, index):
    (optimizer,) = loop.optimizers
    device = loop.model[0].weight.device
    optimizer.zero_grad()
    with torch.autocast(device.type, torch.float16):
        loss = loop.model(torch.randn(5, 4).to(device)).float().pow(2).mean()
    loop.scaler.scale(loss * 2.0**100 if index == 1 else loss).backward()
    loop.scaler.step(optimizer)
    loop.scaler.update()
    return loss
