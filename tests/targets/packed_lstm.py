"""A two-way LSTM over packed sequences; what it returns is packed too."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, signal, lengths):
        packed = pack_padded_sequence(signal, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, (_, cell) = self.lstm(packed)
        padded, _ = pad_packed_sequence(hidden, batch_first=True)
        return self.head(padded), cell


def build_model():
    return Tagger()


def train_batches():
    while True:
        yield torch.randn(3, 5, 3), torch.tensor([2, 5, 3])


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def compute_loss(model, batch):
    shown, cell = model(*batch)
    return F.mse_loss(shown, torch.ones_like(shown)) + cell.pow(2).mean()
