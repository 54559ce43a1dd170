"""A GPT on CPython's own source text: 110 million parameters on a GPU.

    mpdiag scan examples/gpt_code.py

Shows a large vocabulary beside a small learning rate: the loss is a mean over thousands of tokens times tens of
thousands of words, so most gradients are tiny, and Adam makes each of them count.
The text is the standard library of the Python that runs this, cut into words, numbers, runs of blanks and single
signs; the metric is bits per character on its last tenth, lower is better.
On a GPU 12 layers of width 768 at 8 x 512 tokens a step, elsewhere small; EXAMPLE_SIZE=small or large chooses.
"""

import math
import os
import re
import sysconfig
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

HIGHER_IS_BETTER = False
DATA_SOURCE = "the source text of Python's standard library"
LARGE = os.environ.get("EXAMPLE_SIZE", "large" if torch.cuda.is_available() else "small") == "large"
WIDTH, LAYERS, CONTEXT, BATCH, VOCABULARY = (768, 12, 512, 8, 32_768) if LARGE else (64, 2, 32, 4, 512)
HEAD = 64 if LARGE else 16
CHARACTERS = None if LARGE else 300_000
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "pydoc_data", "__pycache__"}


def _files(folder):
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in SKIPPED:
            yield from _files(path)
        elif path.suffix == ".py":
            yield path


def _tokens():
    """(the text as codes, the characters of each code); code 0 is every piece too rare for the vocabulary."""
    paths = _files(Path(sysconfig.get_paths()["stdlib"]))
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    pieces = re.findall(r"[A-Za-z]+|[0-9]+| +|\n|.", text[:CHARACTERS])
    kept = [piece for piece, _ in Counter(pieces).most_common(VOCABULARY - 1)]
    code = {piece: index for index, piece in enumerate(kept, start=1)}
    lengths = torch.tensor([1, *map(len, kept)])
    return torch.tensor([code.get(piece, 0) for piece in pieces]), lengths


CODES, LENGTHS = _tokens()
CUT = len(CODES) * 9 // 10
TRAIN, TEST = CODES[:CUT], CODES[CUT:]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # GPT-2's initialisation: what is added to the residual stream is smaller
                added = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * LAYERS) if added else 0.02)

    def forward(self, codes):
        x = self.tokens(codes) + self.positions(torch.arange(codes.shape[1], device=codes.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _windows(codes, starts):
    pieces = codes[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def build_model():
    return Gpt()


def train_batches():
    while True:
        yield _windows(TRAIN, torch.randint(len(TRAIN) - CONTEXT - 1, (BATCH,)))


def compute_loss(model, batch):
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)


def evaluate(model):
    """Bits per character on 32 windows spread over the held-out text."""
    device = next(model.parameters()).device
    starts = torch.linspace(0, len(TEST) - CONTEXT - 2, 32).long()
    inputs, targets = _windows(TEST, starts)
    model.eval()
    nats = 0.0
    for some, wanted in zip(inputs.split(8), targets.split(8), strict=True):
        logits = model(some.to(device)).float().flatten(0, 1)
        nats += F.cross_entropy(logits, wanted.to(device).flatten(), reduction="sum").item()
    model.train()
    return {"bits_per_character": nats / math.log(2) / LENGTHS[targets].sum().item()}
