"""A small GPT on English text that is in every Python: the manual pages of CPython's own pydoc_data.topics.

    mpdiag scan examples/char_gpt.py

Shows a transformer: attention and layer norm, a loss averaged over thousands of characters, so small gradients.
The metric is bits per character on the last tenth of the text, lower is better.
"""

import math
import pydoc_data.topics

import torch
import torch.nn.functional as F
from torch import nn

HIGHER_IS_BETTER = False
CONTEXT, BATCH, WIDTH, HEADS, LAYERS = 128, 16, 128, 4, 4

TEXT = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
ALPHABET = sorted(set(TEXT))
CODES = torch.tensor([ALPHABET.index(character) for character in TEXT])
CUT = len(CODES) * 9 // 10
TRAIN, TEST = CODES[:CUT], CODES[CUT:]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharGpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(len(ALPHABET), WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(ALPHABET), bias=False)

    def forward(self, codes):
        x = self.tokens(codes) + self.positions.weight[: codes.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _windows(codes, starts):
    pieces = torch.stack([codes[start : start + CONTEXT + 1] for start in starts.tolist()])
    return pieces[:, :-1], pieces[:, 1:]


def build_model():
    return CharGpt()


def train_batches():
    while True:
        yield _windows(TRAIN, torch.randint(len(TRAIN) - CONTEXT - 1, (BATCH,)))


def compute_loss(model, batch):
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


def evaluate(model):
    """Bits per character on 64 windows spread over the held-out text."""
    starts = torch.linspace(0, len(TEST) - CONTEXT - 1, 64).long()
    inputs, targets = (part.to(next(model.parameters()).device) for part in _windows(TEST, starts))
    model.eval()
    loss = F.cross_entropy(model(inputs).float().flatten(0, 1), targets.flatten())
    model.train()
    return {"bits_per_character": loss.item() / math.log(2)}
