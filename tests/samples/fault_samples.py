"""Targets with one planted fault each, and the finding each of them has to give."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A target with one planted fault, and what has to be found: code, severity and subject."""

    code: str
    severities: tuple[str, ...]
    subject: str | None
    source: str


PREAMBLE = """
import torch
import torch.nn.functional as F
from torch import nn


def train_batches():
    while True:
        yield torch.randn(16, 8), torch.randn(16, 4)


def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

"""

FAULTS = {
    "bce": Fault(
        "MP303",
        ("error",),
        "the loss",
        """
def build_model():
    return nn.Sequential(nn.Linear(8, 4), nn.Sigmoid())

def compute_loss(model, batch):
    return nn.BCELoss()(model(batch[0]), (batch[1] > 0).float())
""",
    ),
    "pixels": Fault(
        "MP103",
        ("warning",),
        "the input batch",
        """
def train_batches():
    while True:
        x = torch.randint(256, (16, 8)).float()
        x[0, 0] = 255
        yield x, torch.randn(16, 4)
""",
    ),
    "large activation": Fault(
        "MP101",
        ("error",),
        "body.large",
        """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"large": nn.Linear(8, 16), "head": nn.Linear(16, 4)})
        nn.init.constant_(self.body["large"].bias, 1e5)

    def forward(self, x):
        return self.body["head"](self.body["large"](x) * 1e-5)

def build_model():
    return Model()
""",
    ),
    "hand-written norm": Fault(
        "MP102",
        ("error",),
        "norm",
        """
class Scale(nn.Module):
    def forward(self, x):
        return x * x / (x * x).mean(-1, keepdim=True)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 16), Scale(), nn.Linear(16, 4)
        nn.init.constant_(self.first.bias, 1000.0)

    def forward(self, x):
        return self.head(self.norm(self.first(x)))

def build_model():
    return Model()
""",
    ),
    "norm that vanishes": Fault(
        "MP102",
        ("error",),
        "norm",
        """
class Scale(nn.Module):
    def forward(self, x):
        return x / ((x * x).mean(-1, keepdim=True) + 1e-5).sqrt()

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 16), Scale(), nn.Linear(16, 4)
        nn.init.constant_(self.first.bias, 1000.0)

    def forward(self, x):
        return self.head(self.norm(self.first(x)))

def build_model():
    return Model()
""",
    ),
    "loss in fp16": Fault(
        "MP302",
        ("error", "warning"),
        "the loss",
        """
def compute_loss(model, batch):
    out = model(batch[0])
    return (out - batch[1].to(out.dtype)).abs().mean()
""",
    ),
    "softmax": Fault(
        "MP301",
        ("warning",),
        "soft",
        """
class MySoftmax(nn.Module):
    def forward(self, x):
        return x.sigmoid() / 4

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.soft, self.head = nn.Linear(8, 16), MySoftmax(), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.soft(self.first(x)))

def build_model():
    return Model()
""",
    ),
    "tiny gradients": Fault(
        "MP201",
        ("info",),
        None,
        """
def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1]) * 1e-6
""",
    ),
    "a sum for a loss": Fault(
        "MP203",
        ("error",),
        None,
        """
def compute_loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).sum() * 1e5

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-12)
""",
    ),
    "two ranges": Fault(
        "MP204",
        ("error",),
        "loss scale",
        """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return self.small(x).float() * 1e-9, self.large(x).float() * 1e5

def build_model():
    return Model()

def compute_loss(model, batch):
    small, large = model(batch[0])
    return small.mean() + large.mean()

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-9)
""",
    ),
    "float16 weights": Fault(
        "MP205",
        ("error", "warning"),
        None,
        """
def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(torch.float16)

def train_batches():
    while True:
        yield torch.randn(16, 8).to(torch.float16), torch.randn(16, 4).to(torch.float16)

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-5)
""",
    ),
    "bfloat16 weights": Fault(
        "MP205",
        ("error", "warning"),
        None,
        """
def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(torch.bfloat16)

def train_batches():
    while True:
        yield torch.randn(16, 8).to(torch.bfloat16), torch.randn(16, 4).to(torch.bfloat16)

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-5)
""",
    ),
}
