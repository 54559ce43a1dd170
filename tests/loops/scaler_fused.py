"""A GradScaler with a fused optimizer, which unscales inside its kernel and is called even when it skips."""

from types import SimpleNamespace

import torch
from torch import nn


def build(device):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(device)
    scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=2.0**12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    return SimpleNamespace(model=model, optimizers=[optimizer], scaler=scaler)


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
