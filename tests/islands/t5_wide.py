"""t5_like at the width of T5-base, for a GPU: large enough that the arithmetic sets the pace."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import t5_like

t5_like.WIDTH, t5_like.VOCABULARY, t5_like.BATCH, t5_like.LENGTH = 768, 8192, 32, 256

build_model = t5_like.build_model
train_batches = t5_like.train_batches
build_optimizer = t5_like.build_optimizer
compute_loss = t5_like.compute_loss
