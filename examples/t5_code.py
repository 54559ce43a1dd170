"""A T5 that restores spans cut out of CPython's own source text.

    mpdiag scan examples/t5_code.py

Shows an encoder and a decoder with T5's own parts: RMS norm before each sum, attention without the usual scaling but
with a learnt bias by distance. Larger T5s are known to overflow FP16 in their feed-forward layers once trained.
The text is the standard library of the Python that runs this, cut into words, numbers, runs of blanks and single
signs; 15 % of it is taken out in spans of three on average. The metric is the share of tokens of the missing spans that
is predicted rightly on the text's last tenth.
On a GPU the shape of T5-small at 32 x 256 tokens a step, elsewhere small; EXAMPLE_SIZE=small or large chooses.
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

DATA_SOURCE = "the source text of Python's standard library"
HIGHER_IS_BETTER = True
LARGE = os.environ.get("EXAMPLE_SIZE", "large" if torch.cuda.is_available() else "small") == "large"
WIDTH, WIDE, LAYERS, LENGTH, BATCH, VOCABULARY = (512, 2048, 6, 256, 32, 8_192) if LARGE else (64, 128, 2, 40, 8, 512)
HEAD = 64 if LARGE else 16
HEADS = WIDTH // HEAD
CHARACTERS = None if LARGE else 300_000
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "pydoc_data", "__pycache__"}
MISSING = round(0.15 * LENGTH)  # tokens taken out of a window
SPANS = round(MISSING / 3)
RARE, BEGIN, FIRST_SENTINEL = 0, 1, 2  # codes that stand for no word
FIRST_WORD = FIRST_SENTINEL + SPANS + 1
BUCKETS, FAR = 32, 128  # of distances between two positions; T5's own


def _files(folder):
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in SKIPPED:
            yield from _files(path)
        elif path.suffix == ".py":
            yield path


def _tokens():
    paths = _files(Path(sysconfig.get_paths()["stdlib"]))
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    pieces = re.findall(r"[A-Za-z]+|[0-9]+| +|\n|.", text[:CHARACTERS])
    kept = Counter(pieces).most_common(VOCABULARY - FIRST_WORD)
    code = {piece: index for index, (piece, _) in enumerate(kept, start=FIRST_WORD)}
    return torch.tensor([code.get(piece, RARE) for piece in pieces])


CODES = _tokens()
CUT = len(CODES) * 9 // 10
TRAIN, TEST = CODES[:CUT], CODES[CUT:]


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        full = x.float()  # the mean of squares would overflow in FP16
        return (self.weight * full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def _bucket(distance, both_sides):
    """T5's bucket of a distance key - query: each near one has its own, far ones share by the logarithm."""
    buckets = BUCKETS // 2 if both_sides else BUCKETS
    base = (distance > 0) * buckets if both_sides else torch.zeros_like(distance)
    apart = distance.abs() if both_sides else (-distance).clamp(min=0)
    near = buckets // 2
    far = near + (torch.log(apart.clamp(min=1) / near) / math.log(FAR / near) * (buckets - near)).long()
    return base + torch.where(apart < near, apart, far.clamp(max=buckets - 1))


class Bias(nn.Module):
    """The bias of each head by distance; all layers of a stack share one."""

    def __init__(self, both_sides):
        super().__init__()
        self.by_bucket, self.both_sides = nn.Embedding(BUCKETS, HEADS), both_sides

    def forward(self, length):
        places = torch.arange(length, device=self.by_bucket.weight.device)
        distance = places - places.unsqueeze(1)
        bias = self.by_bucket(_bucket(distance, self.both_sides)).permute(2, 0, 1)
        return bias if self.both_sides else bias.masked_fill(distance > 0, -math.inf)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x, memory, bias=None):
        q, k, v = (t.unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for t in (self.q(x), self.k(memory), self.v(memory)))
        scores = q @ k.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        mixed = scores.float().softmax(-1).to(v.dtype) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, decodes):
        super().__init__()
        self.norm1, self.own = RmsNorm(), Attention()
        if decodes:
            self.norm2, self.cross = RmsNorm(), Attention()
        self.norm3 = RmsNorm()
        self.wi, self.wo = nn.Linear(WIDTH, WIDE, bias=False), nn.Linear(WIDE, WIDTH, bias=False)

    def forward(self, x, bias, memory=None):
        y = self.norm1(x)
        x = x + self.own(y, y, bias)
        if memory is not None:
            x = x + self.cross(self.norm2(x), memory)
        return x + self.wo(F.relu(self.wi(self.norm3(x))))


class T5(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder_bias, self.decoder_bias = Bias(both_sides=True), Bias(both_sides=False)
        self.encoder = nn.ModuleList(Block(decodes=False) for _ in range(LAYERS))
        self.decoder = nn.ModuleList(Block(decodes=True) for _ in range(LAYERS))
        self.encoder_norm, self.decoder_norm = RmsNorm(), RmsNorm()
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():  # T5's initialisation: unscaled attention wants small queries
            if name.endswith(".q.weight"):
                nn.init.normal_(parameter, 0.0, (WIDTH * HEAD) ** -0.5)
            elif parameter.dim() == 2 and not name.startswith("words"):
                nn.init.normal_(parameter, 0.0, parameter.shape[1] ** -0.5)

    def forward(self, codes, given):
        x, bias = self.words(codes), self.encoder_bias(codes.shape[1])
        for block in self.encoder:
            x = block(x, bias)
        memory = self.encoder_norm(x)
        y, bias = self.words(given), self.decoder_bias(given.shape[1])
        for block in self.decoder:
            y = block(y, bias, memory)
        return self.head(self.decoder_norm(y))


def _parts(total, count, random):
    """`total` cut at random into `count` parts of at least one."""
    cuts = torch.randperm(total - 1, generator=random)[: count - 1].sort().values + 1
    return torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([total])).tolist()


def _with_holes(window, random=None):
    """(the window with a sentinel for each span, the spans each after its sentinel); always of the same lengths."""
    kept, wanted, at = [], [], 0
    shapes = zip(_parts(LENGTH - MISSING, SPANS, random), _parts(MISSING, SPANS, random), strict=True)
    for index, (stays, goes) in enumerate(shapes):
        sentinel = torch.tensor([FIRST_SENTINEL + index])
        kept += [window[at : at + stays], sentinel]
        wanted += [sentinel, window[at + stays : at + stays + goes]]
        at += stays + goes
    return torch.cat(kept), torch.cat([*wanted, torch.tensor([FIRST_SENTINEL + SPANS])])


def _batch(codes, starts, random=None):
    sources, targets = zip(*(_with_holes(codes[s : s + LENGTH], random) for s in starts.tolist()), strict=True)
    target = torch.stack(targets)
    return torch.stack(sources), F.pad(target[:, :-1], (1, 0), value=BEGIN), target


def build_model():
    return T5()


def train_batches():
    while True:
        yield _batch(TRAIN, torch.randint(len(TRAIN) - LENGTH, (BATCH,)))


def compute_loss(model, batch):
    source, given, target = batch
    return F.cross_entropy(model(source, given).flatten(0, 1), target.flatten())


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)


def evaluate(model):
    """The share of the missing words of 128 held-out windows that the model predicts rightly, given those before."""
    starts = torch.linspace(0, len(TEST) - LENGTH - 1, 128).long()
    source, given, target = _batch(TEST, starts, torch.Generator().manual_seed(1))
    device = next(model.parameters()).device
    model.eval()
    parts = zip(source.split(32), given.split(32), strict=True)
    said = torch.cat([model(some.to(device), before.to(device)).argmax(dim=-1).cpu() for some, before in parts])
    model.train()
    words = (target < FIRST_SENTINEL) | (target >= FIRST_WORD)
    return {"accuracy": (said == target)[words].float().mean().item()}
