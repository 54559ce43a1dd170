"""A ResNet on small colour images: CIFAR-10 where it lies in torchvision's layout, else digits on patches of photos.

    mpdiag scan examples/resnet_images.py

Shows the job of the paper's first table: residual blocks with batch norm, SGD with momentum; no loss scale was needed.
Data: ./data/cifar-10-batches-py (or $CIFAR10) as torchvision unpacks it; otherwise scikit-learn's digits, coloured and
blended into patches of its two photos. The report names which. The metric is accuracy on held-out images.
On a GPU it is ResNet-18 at 256 images a step, elsewhere a small one; EXAMPLE_SIZE=small or large chooses.
"""

import os
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

HIGHER_IS_BETTER = True

LARGE = os.environ.get("EXAMPLE_SIZE", "large" if torch.cuda.is_available() else "small") == "large"
WIDTH, BATCH, TRAINED, TESTED = (64, 256, 20_000, 2_000) if LARGE else (8, 32, 1_000, 200)
SIDE, CLASSES = 32, 10
CIFAR = Path(os.environ.get("CIFAR10", "data/cifar-10-batches-py"))
HELD_OUT_FROM = 480  # of the photos' 640 columns: what lies right of it is for testing


def _cifar(names):
    """(images N x 3 x 32 x 32 of bytes, labels) of CIFAR-10's own files."""
    parts = [pickle.loads((CIFAR / name).read_bytes(), encoding="latin1") for name in names]
    images = torch.cat([torch.from_numpy(part["data"]) for part in parts]).view(-1, 3, SIDE, SIDE)
    return images, torch.tensor([label for part in parts for label in part["labels"]])


def _digits_on_photos(count, held_out, seed):
    """The same from scikit-learn: every fifth digit, and the right quarter of the photos, are for testing."""
    from sklearn.datasets import load_digits, load_sample_images

    digits, random = load_digits(), torch.Generator().manual_seed(seed)
    photos = torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2).float()
    photos = photos[..., HELD_OUT_FROM:] if held_out else photos[..., :HELD_OUT_FROM]
    usable = torch.arange(len(digits.target))
    usable = usable[(usable % 5 == 0) == held_out]
    chosen = usable[torch.randint(len(usable), (count,), generator=random)]
    _, _, height, width = photos.shape
    place = torch.rand(count, 3, generator=random) * torch.tensor([len(photos), height - SIDE, width - SIDE])
    patches = torch.stack([photos[p, :, y : y + SIDE, x : x + SIDE] for p, y, x in place.int().tolist()])
    ink = torch.tensor(digits.images / 16.0, dtype=torch.float32)[chosen].unsqueeze(1)
    ink = F.interpolate(ink, size=(SIDE, SIDE), mode="bilinear")
    colours = torch.randint(256, (count, 3, 1, 1), generator=random)
    return ((1 - ink) * patches + ink * colours).byte(), torch.tensor(digits.target)[chosen]


if CIFAR.is_dir():
    DATA_SOURCE = "CIFAR-10"
    TRAIN, TEST = _cifar([f"data_batch_{i}" for i in range(1, 6)]), _cifar(["test_batch"])
    TEST = TEST[0][:TESTED], TEST[1][:TESTED]
else:
    DATA_SOURCE = "scikit-learn's digits blended into patches of its two photos, for want of CIFAR-10"
    TRAIN, TEST = _digits_on_photos(TRAINED, False, seed=1), _digits_on_photos(TESTED, True, seed=2)


class Block(nn.Module):
    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels_out))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        blocks, channels = [], WIDTH
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(Block(channels, WIDTH << stage, stride))
                channels = WIDTH << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


def _as_input(images):
    return images.float() / 127.5 - 1.0


def build_model():
    return ResNet()


def train_batches():
    images, labels = TRAIN
    while True:
        for chunk in torch.randperm(len(labels)).split(BATCH):
            if len(chunk) == BATCH:
                y, x = torch.randint(9, (2,)).tolist()  # a shift of up to four pixels, one for the whole batch
                shifted = F.pad(images[chunk], (4, 4, 4, 4))[:, :, y : y + SIDE, x : x + SIDE]
                yield _as_input(shifted), labels[chunk]


def compute_loss(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def evaluate(model):
    """Accuracy on the held-out images."""
    weight = next(model.parameters())
    model.eval()
    right = 0
    for images, labels in zip(TEST[0].split(500), TEST[1].split(500), strict=True):
        said = model(_as_input(images).to(weight.device, weight.dtype)).argmax(dim=1).cpu()
        right += (said == labels).sum().item()
    model.train()
    return {"accuracy": right / len(TEST[1])}
