"""A detector with SSD's loss: thousands of default boxes an image, of which a handful have something to find.

    mpdiag scan examples/ssd_detector.py

Shows the paper's most telling job. Two thirds of an SSD's activation gradients are exactly zero and many of the others
are below what FP16 can hold: it diverged without a loss scale, and a scale of 8 was enough.
Data: scikit-learn's digits, in colours and sizes of 1/8 to 1/2 of the image, pasted on patches of its two photos. The
backbone is VGG-like, without norms; heads at four strides; hard negatives three to one. The metric is the mean average
precision at an overlap of one half on held-out digits and photo parts.
On a GPU 192 x 192 pixels at 32 images a step, elsewhere small; EXAMPLE_SIZE=small or large chooses.
"""

import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

DATA_SOURCE = "scikit-learn's digits pasted on patches of its two photos, made for this example"
HIGHER_IS_BETTER = True
SYNTHETIC_DATA = True
LARGE = os.environ.get("EXAMPLE_SIZE", "large" if torch.cuda.is_available() else "small") == "large"
SIDE, WIDTH, BATCH, TRAINED, TESTED = (192, 48, 32, 1_600, 128) if LARGE else (64, 8, 8, 96, 32)
STRIDES = (8, 16, 32, 64) if LARGE else (8, 16)
CLASSES = 11  # ten digits and "nothing", which is 0
SHAPES = 4  # default boxes a place: square, larger square, wide, tall
OBJECTS = 3  # at most, an image
OVERLAP = 0.5  # of a default box with an object, to be responsible for it; also of a detection, to count as right
HARD_NEGATIVES = 3  # for each positive box
SCALE = (0.1, 0.2)  # SSD's "variances": offsets are given in these units
HELD_OUT_FROM = 440  # of the photos' 640 columns


def _default_boxes():
    """N x 4: centre x, centre y, width, height in shares of the image."""
    boxes = []
    for stride in STRIDES:
        centres = (torch.arange(SIDE // stride) + 0.5) * stride / SIDE
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        size = 2.0 * stride / SIDE
        for wide, tall in ((1, 1), (1.4, 1.4), (1.4, 0.7), (0.7, 1.4)):
            boxes.append(torch.stack([x, y, torch.full_like(x, size * wide), torch.full_like(x, size * tall)], -1))
    # the order of the heads' outputs: by stride, by place, by shape
    grouped = [torch.stack(boxes[i : i + SHAPES], 2).flatten(0, 2) for i in range(0, len(boxes), SHAPES)]
    return torch.cat(grouped)


def _corners(boxes):
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def _overlaps(a, b):
    """Intersection over union of every box of a (n x 4 corners) with every one of b."""
    shared = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0).prod(-1)
    areas = [(c[:, 2:] - c[:, :2]).prod(-1) for c in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)


DEFAULTS = _default_boxes()


def _scenes(count, held_out, seed):
    """(images of bytes, [(kinds, boxes), ...]): digits on photo patches; what is held out is never trained on."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda end: int(torch.randint(end, (), generator=random))
    digits = load_digits()
    photos = torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2).float()
    photos = photos[..., HELD_OUT_FROM:] if held_out else photos[..., :HELD_OUT_FROM]
    ink = torch.tensor(digits.images / 16.0, dtype=torch.float32)
    usable = torch.arange(len(ink))
    usable = usable[(usable % 5 == 0) == held_out]
    images, objects = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8), []
    for index in range(count):
        y, x = draw(photos.shape[2] - SIDE), draw(photos.shape[3] - SIDE)
        image = photos[draw(len(photos)), :, y : y + SIDE, x : x + SIDE].clone()
        kinds, boxes = [], []
        for _ in range(1 + draw(OBJECTS)):
            digit, size = int(usable[draw(len(usable))]), SIDE // 8 + draw(SIDE * 3 // 8)
            top, left = draw(SIDE - size), draw(SIDE - size)
            box = torch.tensor([left + size / 2, top + size / 2, size, size]) / SIDE
            if boxes and _overlaps(_corners(box[None]), _corners(torch.stack(boxes))).max() > 0.1:
                continue  # it would hide another
            mask = F.interpolate(ink[digit][None, None], size=(size, size), mode="bilinear")[0, 0]
            colour = torch.randint(256, (3, 1, 1), generator=random)
            place = image[:, top : top + size, left : left + size]
            place.copy_((1 - mask) * place + mask * colour)
            kinds.append(int(digits.target[digit]) + 1)
            boxes.append(box)
        images[index] = image.byte()
        objects.append((torch.tensor(kinds), torch.stack(boxes)))
    return images, objects


def _matched(kinds, boxes):
    """What each default box has to say: (kind, 0 for nothing; offsets in SSD's encoding)."""
    overlaps = _overlaps(_corners(DEFAULTS), _corners(boxes))
    best, whose = overlaps.max(1)
    nearest = overlaps.argmax(0)  # every object has at least the box nearest to it
    best[nearest], whose[nearest] = 1.0, torch.arange(len(kinds))
    wanted = boxes[whose]
    centres = (wanted[:, :2] - DEFAULTS[:, :2]) / DEFAULTS[:, 2:] / SCALE[0]
    sizes = torch.log(wanted[:, 2:] / DEFAULTS[:, 2:]) / SCALE[1]
    return kinds[whose] * (best >= OVERLAP), torch.cat([centres, sizes], -1)


IMAGES, _OBJECTS = _scenes(TRAINED, False, seed=1)
KINDS, OFFSETS = (torch.stack(part) for part in zip(*(_matched(*found) for found in _OBJECTS), strict=True))
TEST_IMAGES, TEST_OBJECTS = _scenes(TESTED, True, seed=2)


class Ssd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = self._stage(3, WIDTH, 2)
        second = nn.Sequential(self._stage(WIDTH, 2 * WIDTH, 2), self._stage(2 * WIDTH, 4 * WIDTH, 3))
        self.stages = nn.ModuleList([second])
        channels = 4 * WIDTH
        for _ in STRIDES[1:]:
            self.stages.append(self._stage(channels, 8 * WIDTH, 3))
            channels = 8 * WIDTH
        widths = [4 * WIDTH, *[8 * WIDTH] * (len(STRIDES) - 1)]
        self.kinds = nn.ModuleList(nn.Conv2d(width, SHAPES * CLASSES, 3, padding=1) for width in widths)
        self.places = nn.ModuleList(nn.Conv2d(width, SHAPES * 4, 3, padding=1) for width in widths)
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    @staticmethod
    def _stage(channels_in, channels_out, convolutions):
        layers = []
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU()]
            channels_in = channels_out
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    def forward(self, images):
        x = self.first(images.to(self.kinds[0].weight.dtype) / 127.5 - 1.0)
        kinds, places = [], []
        for stage, kind, place in zip(self.stages, self.kinds, self.places, strict=True):
            x = stage(x)
            kinds.append(kind(x).permute(0, 2, 3, 1).reshape(len(x), -1, CLASSES))
            places.append(place(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return torch.cat(kinds, 1), torch.cat(places, 1)


def build_model():
    return Ssd()


def train_batches():
    while True:
        for chunk in torch.randperm(TRAINED).split(BATCH):
            yield IMAGES[chunk], KINDS[chunk], OFFSETS[chunk]


def compute_loss(model, batch):
    """SSD's: cross entropy of the positives and of the hardest negatives, smooth L1 of the positives' offsets."""
    images, kinds, offsets = batch
    said, places = model(images)
    positive = kinds > 0
    classes = F.cross_entropy(said.flatten(0, 1), kinds.flatten(), reduction="none").view(kinds.shape)
    order = torch.sort(classes.detach().masked_fill(positive, 0.0), dim=1, descending=True, stable=True).indices
    hard = order.argsort(1) < HARD_NEGATIVES * positive.sum(1, keepdim=True)
    off = F.smooth_l1_loss(places, offsets, reduction="none").sum(-1)
    return ((classes * (positive | hard)).sum() + (off * positive).sum()) / positive.sum()


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def _detections(said, places):
    """(kinds, scores, corners) of one image, best first: one kind a box, overlapping ones of a kind suppressed."""
    scores, kinds = said.softmax(-1)[:, 1:].max(-1)
    scores, chosen = scores.topk(min(64, len(scores)))
    kinds, places, defaults = kinds[chosen] + 1, places[chosen], DEFAULTS[chosen]
    centres = places[:, :2] * SCALE[0] * defaults[:, 2:] + defaults[:, :2]
    boxes = _corners(torch.cat([centres, (places[:, 2:] * SCALE[1]).clamp(max=4.0).exp() * defaults[:, 2:]], -1))
    near = ((_overlaps(boxes, boxes) > 0.45) & (kinds[:, None] == kinds)).tolist()
    kept = []
    for index, row in enumerate(near):
        if not any(row[other] for other in kept):
            kept.append(index)
    return kinds[kept], scores[kept], boxes[kept]


def _average_precision(right, scores, objects):
    """The area under precision over recall, precision taken as the best at this recall or a higher one."""
    right = right[scores.argsort(descending=True)].double()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    best = precision.flip(0).cummax(0).values.flip(0) if len(right) else precision
    return (best * right).sum().item() / objects


def evaluate(model):
    """Mean average precision over the ten digits at an overlap of one half, on held-out scenes."""
    device = next(model.parameters()).device
    model.eval()
    parts = [[t.float().cpu() for t in model(images.to(device))] for images in TEST_IMAGES.split(32)]
    model.train()
    outputs = (torch.cat(part) for part in zip(*parts, strict=True))
    found = []  # (kind, score, right) of every detection
    for said, places, (kinds, boxes) in zip(*outputs, TEST_OBJECTS, strict=True):
        if not bool(torch.isfinite(said).all() and torch.isfinite(places).all()):
            return {"mAP": float("nan")}
        said_kinds, scores, found_boxes = _detections(said, places)
        overlaps = _overlaps(found_boxes, _corners(boxes)) * (said_kinds[:, None] == kinds)
        best, taken = overlaps.max(1), set()
        for kind, score, overlap, which in zip(
            *(t.tolist() for t in (said_kinds, scores, best.values, best.indices)), strict=True
        ):
            right = overlap >= OVERLAP and which not in taken
            taken |= {which} if right else set()
            found.append((kind, score, right))
    table = torch.tensor(found, dtype=torch.float64)
    wanted = torch.cat([kinds for kinds, _ in TEST_OBJECTS])
    of_kind = {kind: table[table[:, 0] == kind] for kind in wanted.unique().tolist()}
    values = [_average_precision(t[:, 2], t[:, 1], int((wanted == kind).sum())) for kind, t in of_kind.items()]
    return {"mAP": sum(values) / len(values)}
