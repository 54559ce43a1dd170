"""Modules that return a tuple, a named tuple, a dict, a dataclass, a ModelOutput look-alike and nested lists."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, fields

import torch
from torch import nn

Pair = namedtuple("Pair", ["low", "high"])


@dataclass
class Scores:
    logits: torch.Tensor
    note: str = "not a tensor"
    more: object = None


@dataclass
class ModelOutput(OrderedDict):
    """An OrderedDict and a dataclass at once, as the transformers library returns them."""

    loss: torch.Tensor = None
    hidden: tuple = None

    def __post_init__(self):
        for item in fields(self):
            if getattr(self, item.name) is not None:
                self[item.name] = getattr(self, item.name)


def halves(y):
    return y[:, :2] * 2, y[:, 2:] * 3


FORMS = {
    "tuple": halves,
    "named": lambda y: Pair(*halves(y)),
    "dict": lambda y: dict(zip("ab", halves(y), strict=True)),
    "dataclass": lambda y: Scores(halves(y)[0], more=[halves(y)[1], None]),
    "model": lambda y: ModelOutput(y.sum(), halves(y)),
    "lists": lambda y: [[halves(y)[0], [halves(y)[1]]], {"deep": (y.sum(), torch.arange(3), "text")}],
}


class Head(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x):
        return FORMS[self.form](x * self.weight)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.heads = nn.ModuleDict({f"{form}_head": Head(form) for form in FORMS})

    def forward(self, x):
        y = self.body(x)
        return {name: head(y) for name, head in self.heads.items()}


def build_model():
    return Network()


def train_batches():
    while True:
        yield torch.randn(5, 3)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def compute_loss(model, x):
    out = model(x)
    nested = out["lists_head"]
    return (
        sum(part.pow(2).mean() for part in (*out["tuple_head"], *out["named_head"], *out["dict_head"].values()))
        + (out["dataclass_head"].logits * out["dataclass_head"].more[0]).mean()
        + out["model_head"]["loss"]
        + (out["model_head"].hidden[0] * out["model_head"].hidden[1]).mean()
        + (nested[0][0] * nested[0][1][0]).mean()
        + nested[1]["deep"][0]
    )
