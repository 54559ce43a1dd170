"""An LSTM language model on CPython's own source text, character by character.

    mpdiag scan examples/lstm_lm.py

Shows the paper's recurrent jobs: its bigLSTM diverged without a loss scale, after 300,000 iterations, and FP16 weights
updated in place stood still. Neither shows in a hundred steps from initialisation; `--start-from` a trained
state, at the small learning rate of that age, is where to look.
The text is the standard library of the Python that runs this; the metric is bits per character on its last tenth.
LOSS_WEIGHT=1e-4 makes the same training one with tiny gradients: the loss is weighted by it, as if averaged over ten
thousand times as many terms, and the learning rate is divided by it; in FP32 nothing else changes.
On a GPU 1024 units and 128 x 128 characters a step, elsewhere small; EXAMPLE_SIZE=small or large chooses.
"""

import math
import os
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

HIGHER_IS_BETTER = False
DATA_SOURCE = "the source text of Python's standard library"
LARGE = os.environ.get("EXAMPLE_SIZE", "large" if torch.cuda.is_available() else "small") == "large"
WIDTH, BATCH, CONTEXT, CHARACTERS = (1024, 128, 128, 10_000_000) if LARGE else (64, 16, 32, 500_000)
LOSS_WEIGHT = float(os.environ.get("LOSS_WEIGHT", "1"))
SIGNS = 128  # ASCII; what lies beyond becomes "?"


def _text():
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted([*folder.glob("*.py"), *folder.glob("asyncio/*.py"), *folder.glob("email/*.py")])
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    return torch.tensor(list(text.encode("ascii", errors="replace")[:CHARACTERS]), dtype=torch.long)


CODES = _text()
CUT = len(CODES) * 9 // 10
TRAIN, TEST = CODES[:CUT], CODES[CUT:]


class LstmLm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(SIGNS, WIDTH // 4)
        self.lstm = nn.LSTM(WIDTH // 4, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, SIGNS)

    def forward(self, codes):
        states, _ = self.lstm(self.embed(codes))
        return self.head(states)


def _windows(codes, starts):
    pieces = codes[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def build_model():
    return LstmLm()


def train_batches():
    while True:
        yield _windows(TRAIN, torch.randint(len(TRAIN) - CONTEXT - 1, (BATCH,)))


def compute_loss(model, batch):
    inputs, targets = batch
    return LOSS_WEIGHT * F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=2.0 / LOSS_WEIGHT)


def evaluate(model):
    """Bits per character on 256 windows spread over the held-out text."""
    starts = torch.linspace(0, len(TEST) - CONTEXT - 2, 256).long()
    inputs, targets = (part.to(next(model.parameters()).device) for part in _windows(TEST, starts))
    model.eval()
    loss = F.cross_entropy(model(inputs).float().flatten(0, 1), targets.flatten())
    model.train()
    return {"bits_per_character": loss.item() / math.log(2)}
