"""Every default, with its reason."""

from __future__ import annotations

CAPTURE_STEPS = 20
"""Steps observed. Gradient maxima settle within a few steps of the start; 20 keep a laptop scan under half a minute."""

DEPTHS = ("modules", "ops")
"""How deep to look: at what modules give, or at every operation too (two iterations more, several times as long)."""

PREDICTION_STEPS = 100
"""FP32 steps, at most, to the trained state in which FP16's counts are compared with what FP32's foretell."""

PREDICTION_SHARE = 0.25
"""Of the time budget, at most, for that comparison, models and counting included; training keeps the rest."""

SELFTEST_STEPS = 2
"""The second step's gradients depend on the first update, so two steps see forward, backward and optimizer."""

VERIFY_STEPS = 100
"""Steps a verification arm trains: enough for the scale to settle, short enough for six arms and three seeds."""

MIN_VERIFY_STEPS = 5
"""Fewer steps than this say nothing about training; the arm is not run rather than run for show."""

SEEDS = 3
"""Paired seeds: the fewest that give an interval at all (5 for a firm verdict, reference: power of paired TOST)."""

TIME_BUDGET_SECONDS = 80.0
"""For the verification. A default scan of ResNet-50 on an H100 takes some 31 s besides; it is to end in two minutes."""

ISLANDS_SHARE = 0.25
"""Of the time budget, at most, for the search of FP32 islands: each try costs one step and one model, far less than an
arm of the verification, which keeps the rest."""

WARMUP_STEPS = 10
"""Steps before a clock runs: cuDNN's choice of algorithms, allocator growth and GradScaler's first skips are over."""

LARGEST_BATCH_SECONDS = 120.0
"""An arm, at least, for the search of the largest batch, beside the time budget: with a small GPT on an H100 it took
53 to 102 s, of which most went into starting processes; a larger model starts more slowly."""

MOST_STEPS = 10_000_000
"""Of training: a year of it at three a second. Beyond it a number was mistyped, and would draw batches for hours."""

MOST_SEEDS = 10_000
"""Pairs: the test of equivalence gains nothing from more."""

TRAINING_SHARE = 0.4
"""Of the time budget on a GPU, for the training runs; the rest measures what they cost: time, memory, energy."""

MAX_HALVINGS = 6
"""Of the batch, where an arm runs out of memory: 1/64 of what was asked for is another job."""

BATCH_CACHE_BYTES = 2 * 2**30
"""Batches are drawn once a seed and kept, so every arm sees the same data; beyond this the kept ones are reused."""
