"""A two-layer TransformerEncoder language model on byte sequences: MultiheadAttention, post-norm, GELU."""

import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, 64)

    def forward(self, codes):
        mask = nn.Transformer.generate_square_subsequent_mask(codes.shape[1], device=codes.device)
        return self.head(self.layers(self.embed(codes), mask=mask, is_causal=True))


def build_model():
    return Encoder()


def train_batches():
    # a sequence with structure: each code is the sum of the two before it
    while True:
        codes = torch.randint(64, (16, 34))
        for i in range(2, 34):
            codes[:, i] = (codes[:, i - 1] + codes[:, i - 2]) % 64
        yield codes


def compute_loss(model, codes):
    return F.cross_entropy(model(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())
