"""A GradScaler as large jobs use it: accumulation, unscale_, clipping, a scale that grows after every step."""

from types import SimpleNamespace

import torch
from torch import nn


def build(device):
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).to(device)
    scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=2.0**4, growth_interval=1)
    return SimpleNamespace(model=model, optimizers=[torch.optim.Adam(model.parameters(), lr=0.01)], scaler=scaler)


def step(loop, index):
    (optimizer,) = loop.optimizers
    device = loop.model[0].weight.device
    for _ in range(2):
        with torch.autocast(device.type, torch.float16):
            loss = loop.model(torch.randn(5, 4).to(device)).float().pow(2).mean() / 2
        loop.scaler.scale(loss).backward()
    loop.scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(loop.model.parameters(), 2.0**-8)
    loop.scaler.step(optimizer)
    loop.scaler.update()
    optimizer.zero_grad()
    return loss
