"""A ConvNeXt-like network: depthwise convolution, channels-last layer norm, layer scale, log-softmax by hand."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 2, stride=2)
        self.blocks = nn.Sequential(Block(24), Block(24))
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3))).log_softmax(dim=-1)


def build_model():
    return Network()


def train_batches():
    while True:
        labels = torch.randint(5, (32,))
        images = torch.randn(32, 3, 16, 16) * 0.5 + labels[:, None, None, None] * 0.4
        yield {"images": images, "labels": labels}


def compute_loss(model, batch):
    return F.nll_loss(model(batch["images"]), batch["labels"])
