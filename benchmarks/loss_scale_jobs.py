"""The jobs of benchmarks/loss_scale.py: plain torch, synthetic data that can be learnt, no dropout.

Each function gives a Job, `small` one for a CPU. A job's batches are a data set of its seed, repeated.
"""

from __future__ import annotations

from loss_scale_extremes import huge_gradients, tiny_gradients
from loss_scale_language import bert, gpt, lstm, t5
from loss_scale_vision import cnn, deep_cnn, detector, gan, unet

BATCHES = 100  # in a data set

JOBS = {
    make.__name__: make
    for make in (cnn, deep_cnn, lstm, gan, detector, bert, gpt, t5, unet, tiny_gradients, huge_gradients)
}
