"""A BERT that fills in masked words of CPython's own source text.

    mpdiag scan examples/bert_mlm.py

Shows a transformer with the norms after the sums, and a loss on 15 % of the positions only.
The text is the standard library of the Python that runs this, cut into words, numbers, runs of blanks and single
signs; of the chosen positions 80 % are masked, 10 % replaced and 10 % left. The metric is the share of them that is
filled in rightly on the text's last tenth.
On a GPU 8 layers of width 512 at 64 x 128 tokens a step, elsewhere small; EXAMPLE_SIZE=small or large chooses.
"""

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
WIDTH, LAYERS, LENGTH, BATCH, VOCABULARY = (512, 8, 128, 64, 8_192) if LARGE else (64, 2, 32, 8, 512)
HEAD = 64 if LARGE else 16
CHARACTERS = None if LARGE else 300_000
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "pydoc_data", "__pycache__"}
RARE, MASK = 0, 1  # codes that stand for no word
IGNORED = -100  # cross_entropy's own: no loss at this position


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
    kept = Counter(pieces).most_common(VOCABULARY - 2)
    code = {piece: index for index, (piece, _) in enumerate(kept, start=2)}
    return torch.tensor([code.get(piece, RARE) for piece in pieces])


CODES = _tokens()
CUT = len(CODES) * 9 // 10
TRAIN, TEST = CODES[:CUT], CODES[CUT:]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.transform, self.last_norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, 0.0, 0.02)
        self.head.weight = self.words.weight

    def forward(self, codes):
        x = self.norm(self.words(codes) + self.places(torch.arange(LENGTH, device=codes.device)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.last_norm(F.gelu(self.transform(x))))


def _masked(codes, random=None):
    """(what the model sees, what it has to say) of a batch of codes."""
    luck = torch.rand(codes.shape, generator=random)
    other = torch.randint(2, VOCABULARY, codes.shape, generator=random)
    seen = codes.masked_fill(luck < 0.12, MASK)  # 80 % of the 15 %
    seen = torch.where((luck >= 0.12) & (luck < 0.135), other, seen)
    return seen, codes.masked_fill(luck >= 0.15, IGNORED)


def _windows(codes, starts):
    return codes[starts.unsqueeze(1) + torch.arange(LENGTH)]


def build_model():
    return Bert()


def train_batches():
    while True:
        yield _masked(_windows(TRAIN, torch.randint(len(TRAIN) - LENGTH, (BATCH,))))


def compute_loss(model, batch):
    seen, wanted = batch
    return F.cross_entropy(model(seen).flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)


def evaluate(model):
    """The share of 256 held-out windows' chosen positions that the model fills in rightly."""
    starts = torch.linspace(0, len(TEST) - LENGTH - 1, 256).long()
    seen, wanted = _masked(_windows(TEST, starts), torch.Generator().manual_seed(1))
    device = next(model.parameters()).device
    model.eval()
    said = torch.cat([model(part.to(device)).argmax(dim=-1).cpu() for part in seen.split(64)])
    model.train()
    asked = wanted != IGNORED
    return {"accuracy": (said == wanted)[asked].float().mean().item()}
