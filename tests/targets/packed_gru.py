"""A GRU classifier on sequences of different lengths, packed; batches are dataclasses."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


@dataclass
class Batch:
    signal: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, signal, lengths):
        packed = pack_padded_sequence(signal, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        return {"logits": self.head(last[-1])}


def build_model():
    return Classifier()


def train_batches():
    while True:
        labels = torch.randint(4, (32,))
        signal = torch.randn(32, 20, 8) * 0.3
        signal[:, :, :4] += F.one_hot(labels, 4)[:, None]
        yield Batch(signal, torch.randint(5, 21, (32,)), labels)


def compute_loss(model, batch):
    return F.cross_entropy(model(batch.signal, batch.lengths)["logits"], batch.labels)
