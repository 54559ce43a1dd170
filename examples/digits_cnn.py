"""A convolutional network on scikit-learn's handwritten digits: a real task whose accuracy one can check.

    mpdiag scan examples/digits_cnn.py

Shows the common case: batch norm between convolutions, gradients averaged over a batch, accuracy as the metric.
1,797 images of 8x8 pixels; every fifth is held out.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

HIGHER_IS_BETTER = True

BATCH = 128


def _data():
    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


TRAIN, TEST = _data()


def _block(channels_in, channels_out):
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class DigitsNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            _block(1, 32), _block(32, 64), nn.MaxPool2d(2), _block(64, 128), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Linear(128, 10)

    def forward(self, images):
        return self.head(self.features(images).flatten(1))


def build_model():
    return DigitsNet()


def train_batches():
    images, labels = TRAIN
    while True:
        order = torch.randperm(len(labels))
        for chunk in order.split(BATCH)[:-1]:  # the last, smaller one is dropped
            yield images[chunk], labels[chunk]


def compute_loss(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)


def evaluate(model):
    """Accuracy on the held-out images."""
    images, labels = TEST
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    model.eval()
    predicted = model(images.to(device, dtype)).argmax(dim=1).cpu()
    model.train()
    return {"accuracy": (predicted == labels).float().mean().item()}
