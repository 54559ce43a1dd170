"""The examples in their small size: each loads, trains and has a metric that means what it says."""

from __future__ import annotations

import importlib.util
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mpdiag.cli.main import main
from mpdiag.target import Job, load_job
from mpdiag.target.batches import tensors_in
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session, total

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))

Opened = Callable[..., ModuleType]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Imports an example in its small size, with what its environment variables say."""

    def importing(name: str, **variables: str) -> ModuleType:
        for key, value in {"EXAMPLE_SIZE": "small", **variables}.items():
            monkeypatch.setenv(key, value)
        spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return importing


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_SIZE", "small")
    monkeypatch.chdir(ROOT)


def job_of(name: str) -> Job:
    return load_job(f"examples/{name}.py")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_loads_does_one_step_and_is_measured(small, name):
    job = job_of(name)
    start = job.start(0, 1)
    with open_session(job, start, FP32_IEEE, CPU) as run:
        losses = run.step(run.place(start.batch(0)))
        metric = run.evaluate()
    assert all(math.isfinite(float(loss)) for loss in losses.values())
    assert metric
    assert all(math.isfinite(value) for value in metric.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_opens_with_what_it_shows_and_how_to_scan_it(name):
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert f"    mpdiag scan examples/{name}.py\n" in text
    assert "Shows" in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_two_seeds_of_an_example_differ_in_their_batches(small, name):
    job = job_of(name)
    first, other = (list(tensors_in(job.start(seed, 1).batch(0))) for seed in (0, 1))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_scans_on_a_cpu(small, name, tmp_path, monkeypatch):
    words = ["--steps", "3", "--verify-steps", "6", "--seeds", "2", "--plotly", "none", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["mpdiag", "scan", f"examples/{name}.py", "--device", "cpu", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, 3)  # six steps of a GAN may well be undecided
    assert {path.suffix for path in tmp_path.iterdir()} >= {".json", ".html"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "dcgan"])  # a GAN's losses need not fall
def test_an_example_learns(small, name):
    job = job_of(name)
    start = job.start(0, 30)
    with open_session(job, start, FP32_IEEE, CPU) as run:
        losses = [total(run.step(run.place(start.batch(step)))) for step in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_gpt_has_more_than_a_hundred_million_parameters_on_a_gpu(opened):
    gpt = opened("gpt_code", EXAMPLE_SIZE="large")
    with torch.device("meta"):
        model = gpt.build_model()
    assert sum(p.numel() for p in model.parameters()) > 100e6


# where the data is from


def test_a_report_names_the_source_of_the_data(small):
    assert any("scikit-learn's digits" in note for note in job_of("ssd_detector").notes)
    assert job_of("ssd_detector").synthetic_data


def cifar_file(label: int, count: int) -> bytes:
    """A file as CIFAR-10's: a dict of rows of 3072 bytes, channel by channel, and labels."""
    row = torch.arange(3072).remainder(256).byte()
    return pickle.dumps({"data": row.repeat(count, 1).numpy(), "labels": [label] * count})


def test_the_resnet_takes_cifar_10_where_it_is(opened, tmp_path):
    for index in range(1, 6):
        (tmp_path / f"data_batch_{index}").write_bytes(cifar_file(index, 10))
    (tmp_path / "test_batch").write_bytes(cifar_file(9, 4))
    resnet = opened("resnet_images", CIFAR10=str(tmp_path))
    assert resnet.DATA_SOURCE == "CIFAR-10"
    images, labels = resnet.TRAIN
    assert (images.shape, labels.tolist()) == ((50, 3, 32, 32), [i for i in range(1, 6) for _ in range(10)])
    assert images[0, 1, 0, 0] == 1024 % 256
    assert images[0, 0, 1, 2] == 34  # the third pixel of the second row of the first channel
    assert resnet.TEST[1].tolist() == [9] * 4


def test_without_cifar_10_the_resnet_says_so_and_holds_images_out(opened, tmp_path):
    resnet = opened("resnet_images", CIFAR10=str(tmp_path / "none"))
    assert "for want of CIFAR-10" in resnet.DATA_SOURCE
    assert resnet.TRAIN[0].shape[1:] == resnet.TEST[0].shape[1:] == (3, 32, 32)


# the LSTM's tiny gradients


def test_a_weighted_loss_and_a_divided_rate_are_the_same_training(opened):
    def trained(**variables: str) -> torch.Tensor:
        lstm = opened("lstm_lm", **variables)
        torch.manual_seed(0)
        model, batches = lstm.build_model(), lstm.train_batches()
        optimizer = lstm.build_optimizer(model)
        for _ in range(3):
            optimizer.zero_grad()
            lstm.compute_loss(model, next(batches)).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    plain, weighted = trained(), trained(LOSS_WEIGHT="1e-4")
    assert torch.allclose(plain, weighted, rtol=1e-4, atol=1e-6)
    assert not torch.equal(plain, trained(LOSS_WEIGHT="1e-30"))  # below FP32 too, such a weight is another job


# the detector


def test_few_default_boxes_have_something_to_find(opened):
    ssd = opened("ssd_detector")
    positive = (ssd.KINDS > 0).float()
    assert positive.mean() < 0.2
    assert (positive.sum(1) > 0).all()


def test_default_boxes_are_in_the_order_of_the_heads_outputs(opened):
    ssd = opened("ssd_detector")
    model = ssd.build_model()
    kinds, places = model(ssd.TEST_IMAGES[:1])
    assert kinds.shape[1] == places.shape[1] == len(ssd.DEFAULTS)
    side = ssd.SIDE // ssd.STRIDES[0]
    # one head's output as it comes: channel (shape, class), row, column
    raw = torch.zeros(1, ssd.SHAPES * 4, side, side)
    raw[0, 2 * 4, 3, 5] = 1.0  # the first coordinate of the third shape, fourth row, sixth column
    flat = raw.permute(0, 2, 3, 1).reshape(1, -1, 4)
    index = int(flat[0, :, 0].argmax())
    centre = torch.tensor([5.5, 3.5]) * ssd.STRIDES[0] / ssd.SIDE
    assert torch.allclose(ssd.DEFAULTS[index, :2], centre)
    assert ssd.DEFAULTS[index, 2] > ssd.DEFAULTS[index, 3]  # the third shape is the wide one


class Oracle(torch.nn.Module):
    """A detector that knows the answers, or all but the boxes'."""

    def __init__(self, ssd: Any, boxes_known: bool) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        matched = [ssd._matched(*found) for found in ssd.TEST_OBJECTS]
        self.kinds = torch.stack([kinds for kinds, _ in matched])
        self.offsets = torch.stack([offsets for _, offsets in matched]) if boxes_known else None
        self.classes, self.images = ssd.CLASSES, ssd.TEST_IMAGES

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        which = [int((self.images == image).flatten(1).all(1).nonzero()[0]) for image in images]
        said = 10.0 * torch.nn.functional.one_hot(self.kinds[which], self.classes).float()
        far = torch.full((len(images), said.shape[1], 4), 50.0)  # fifty units off: overlaps nothing
        return said, far if self.offsets is None else self.offsets[which]


def test_a_perfect_detector_has_a_precision_of_one_and_one_that_misses_all_boxes_of_zero(opened):
    ssd = opened("ssd_detector")
    assert ssd.evaluate(Oracle(ssd, boxes_known=True))["mAP"] == pytest.approx(1.0)
    assert ssd.evaluate(Oracle(ssd, boxes_known=False))["mAP"] == pytest.approx(0.0)


def test_the_average_precision_is_the_area_under_the_best_precision(opened):
    ssd = opened("ssd_detector")
    right = torch.tensor([1.0, 0.0, 1.0])
    scores = torch.tensor([0.9, 0.8, 0.7])
    # recall 1/4 at precision 1, 2/4 at 2/3, the other two objects are not found
    assert ssd._average_precision(right, scores, 4) == pytest.approx((1 + 2 / 3) / 4)
    assert ssd._average_precision(right[:0], scores[:0], 4) == 0.0


def test_the_loss_takes_three_hard_negatives_for_each_positive(opened):
    ssd = opened("ssd_detector")

    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            said = torch.zeros(1, 6, ssd.CLASSES)
            said[0, 1:, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])  # ever surer of a 0 where nothing is
            return said, torch.zeros(1, 6, 4)

    kinds = torch.tensor([[1, 0, 0, 0, 0, 0]])
    loss = ssd.compute_loss(Fixed(), (torch.zeros(1), kinds, torch.full((1, 6, 4), 2.0)))
    entropies = [math.log(ssd.CLASSES - 1 + math.exp(value)) for value in (0.0, 3.0, 4.0, 5.0)]
    assert loss.item() == pytest.approx(sum(entropies) + 4 * 1.5)  # smooth L1 of 2 is 1.5, for the positive alone


# text


def test_spans_cut_out_of_a_window_can_be_put_back(opened):
    t5 = opened("t5_code")
    window = t5.TRAIN[: t5.LENGTH]
    source, target = t5._with_holes(window, torch.Generator().manual_seed(3))
    assert len(source) == t5.LENGTH - t5.MISSING + t5.SPANS
    assert len(target) == t5.MISSING + t5.SPANS + 1
    spans: dict[int, list[int]] = {}
    for code in target.tolist():
        if t5.FIRST_SENTINEL <= code < t5.FIRST_WORD:
            spans[code] = []
        else:
            spans[next(reversed(spans))].append(code)
    whole = [code for item in source.tolist() for code in spans.get(item, [item])]
    assert whole == window.tolist()


def test_a_bert_is_asked_about_fifteen_percent_of_the_positions(opened):
    bert = opened("bert_mlm")
    codes = torch.randint(2, bert.VOCABULARY, (400, 100), generator=torch.Generator().manual_seed(0))
    seen, wanted = bert._masked(codes, torch.Generator().manual_seed(1))
    asked = wanted != bert.IGNORED
    assert asked.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (seen == bert.MASK)[asked].float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (seen == codes)[asked].float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(seen[~asked], codes[~asked])


def test_t5s_buckets_are_those_of_its_paper(opened):
    t5 = opened("t5_code")
    distances = torch.tensor([-200, -128, -9, -8, -7, 0, 1, 7, 8, 127, 500])
    assert t5._bucket(distances, both_sides=True).tolist() == [15, 15, 8, 8, 7, 0, 17, 23, 24, 31, 31]
    assert t5._bucket(torch.tensor([3, 0, -15, -16, -127, -500]), both_sides=False).tolist() == [0, 0, 15, 16, 31, 31]
