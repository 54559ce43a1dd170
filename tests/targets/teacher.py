"""A student learns from a frozen TransformerEncoder in evaluation mode, which takes torch's fused fast path."""

import torch
import torch.nn.functional as F
from torch import nn


class Distillation(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.teacher = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).requires_grad_(False)
        self.student = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x, padding):
        with torch.no_grad():
            wanted = self.teacher(x, src_key_padding_mask=padding)
        return self.student(x), wanted


def build_model():
    return Distillation()


def train_batches():
    while True:
        yield torch.randn(3, 7, 16), torch.arange(7) >= torch.tensor([[7], [4], [5]])


def build_optimizer(model):
    return torch.optim.SGD(model.student.parameters(), lr=0.1)


def compute_loss(model, batch):
    return F.mse_loss(*model.train()(*batch))
