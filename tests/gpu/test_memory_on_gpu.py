"""Memory at the peak and the largest batch, on real allocators: models small enough to be known on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mpdiag.costs.memory import MemoryUse, from_reply, why_not_half
from mpdiag.device.memory import CudaAllocator
from mpdiag.measure.again import open_again, request_for
from mpdiag.measure.largest_batch import find_largest_batch
from mpdiag.measure.memory import measured, memory_of_arms
from mpdiag.target import load_job
from mpdiag.training.precision import FP32_IEEE, Precision

pytestmark = pytest.mark.gpu

MIB = 2**20
IN, OUT, BATCH = 1024, 2048, 256
WEIGHT = IN * OUT * 4
FP16 = Precision("FP16", autocast=torch.float16, log2_scale=8)

LINEAR = f"""
import torch
def build_model():
    return torch.nn.Linear({IN}, {OUT}, bias=False)
def train_batches():
    yield torch.randn({BATCH}, {IN}), torch.randn({BATCH}, {OUT})
def loss_fn(output, target):
    return torch.nn.functional.mse_loss(output, target)
def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
"""
DEEP = """
import torch
def build_model():
    layers = []
    for _ in range(12):
        layers += [torch.nn.Linear(512, 512), torch.nn.LayerNorm(512), torch.nn.GELU()]
    return torch.nn.Sequential(*layers)
def train_batches():
    yield torch.randn(8192, 512), torch.randn(8192, 512)
def loss_fn(output, target):
    return torch.nn.functional.mse_loss(output, target)
def build_optimizer(model):
    return torch.optim.AdamW(model.parameters())
"""
CONV = """
import torch
def build_model():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(32 * 32 * 32, 10))
def train_batches():
    yield torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
def loss_fn(output, target):
    return torch.nn.functional.cross_entropy(output, target)
"""


def target(tmp_path: Path, text: str) -> str:
    path = tmp_path / "job.py"
    path.write_text(text)
    return str(path)


def measure(tmp_path: Path, text: str, precision: Precision, gpu: torch.device) -> MemoryUse:
    again = open_again(request_for(load_job(target(tmp_path, text)), precision, 0, gpu, None))
    return from_reply("arm", measured(again, CudaAllocator(gpu)))


def check(use: MemoryUse) -> Any:
    assert use.reason is use.split_reason is None
    assert use.split is not None
    assert use.peak_allocated_bytes is not None
    assert use.peak_reserved_bytes is not None
    assert use.split.total == use.recorded_peak_bytes
    assert abs(use.recorded_peak_bytes - use.peak_allocated_bytes) <= MIB  # a mark takes 512 bytes
    assert use.peak_allocated_bytes <= use.peak_reserved_bytes
    assert use.split.rounding_bytes < 0.1 * use.split.total + 8 * MIB
    return use.split


def test_one_linear_layer_byte_by_byte(gpu: torch.device, tmp_path: Path) -> None:
    use = measure(tmp_path, LINEAR, FP32_IEEE, gpu)
    split = check(use)
    assert split.weights_bytes == split.optimizer_state_bytes == WEIGHT
    assert split.gradients_bytes == WEIGHT
    assert split.batch_bytes == BATCH * (IN + OUT) * 4
    assert split.workspace_bytes >= MIB  # cuBLAS's
    assert split.autocast_copies_bytes == 0
    assert set(split.activations_bytes) <= {"float32"}
    assert use.alloc_retries == 0


def test_under_autocast_the_weights_copy_and_the_inputs_are_seen(gpu: torch.device, tmp_path: Path) -> None:
    use = measure(tmp_path, LINEAR, FP16, gpu)
    split = check(use)
    assert split.weights_bytes == WEIGHT
    assert split.autocast_copies_bytes == (WEIGHT // 2 if use.peak_phase == "forward" else 0)
    # the forward: the weight's copy and the input's beside what FP32 holds; its gradient comes when both are gone
    assert use.peak_phase == "forward" or split.gradients_bytes == WEIGHT
    assert use.peak_phase == "backward" or split.activations_bytes["float16"] >= BATCH * IN * 2  # the input, cast


def test_activations_shrink_and_the_rest_does_not(gpu: torch.device, tmp_path: Path) -> None:
    fp32, fp16 = (measure(tmp_path, DEEP, precision, gpu) for precision in (FP32_IEEE, FP16))
    a, b = check(fp32), check(fp16)
    assert a.weights_bytes == b.weights_bytes == 12 * (512 * 512 + 3 * 512) * 4
    assert a.optimizer_state_bytes == pytest.approx(2 * a.weights_bytes, rel=0.01)
    assert set(a.activations_bytes) == {"float32"}
    assert b.activations_bytes["float16"] > 0
    assert b.activations_bytes["float32"] > 0  # LayerNorm's
    assert b.autocast_copies_bytes > 11 * 512 * 512 * 2 * (fp16.peak_phase == "forward")
    why = why_not_half(fp32, fp16)
    assert why is not None
    assert why.foretold < 1
    assert sum(why.excess_bytes.values()) == b.total - a.total / 2


def test_a_convolution_and_its_norm(gpu: torch.device, tmp_path: Path) -> None:
    split = check(measure(tmp_path, CONV, FP32_IEEE, gpu))
    assert split.buffers_bytes == 32 * 4 * 2 + 8
    assert split.optimizer_state_bytes > 0


def test_arms_in_processes_of_their_own(gpu: torch.device, tmp_path: Path) -> None:
    before = torch.cuda.memory_allocated(gpu)
    found = memory_of_arms(load_job(target(tmp_path, DEEP)), {"fp32": FP32_IEEE, "fp16": FP16}, 0, gpu, 180)
    for use in found.values():
        check(use)
    assert found["fp16"].peak_allocated_bytes < found["fp32"].peak_allocated_bytes  # type: ignore[operator]
    assert torch.cuda.memory_allocated(gpu) == before


def test_the_largest_batch_on_a_smaller_card(gpu: torch.device, tmp_path: Path) -> None:
    job = load_job(target(tmp_path, DEEP))
    found = find_largest_batch(job, FP16, 0, gpu, 240, memory_limit_bytes=4 * 2**30, arm="fp16")
    assert found.reason is None
    assert found.limited
    assert found.batch is not None
    assert found.batch > 8192  # 12 layers at 8192 take well under 1 GiB
    assert not found.at_least, found.notes
    assert found.too_large is not None
    assert found.too_large <= found.batch * 1.05
    assert found.peak_bytes is not None
    assert found.budget_bytes is not None
    assert found.peak_bytes <= found.budget_bytes < 4 * 2**30
    assert found.samples_per_second is not None, found.speed_reason


def test_a_card_too_small_for_the_model_is_a_reason(gpu: torch.device, tmp_path: Path) -> None:
    big = LINEAR.replace("Linear(1024, 2048", "Linear(1024, 2048 * 256").replace("2048)", "2048 * 256)")
    found = find_largest_batch(load_job(target(tmp_path, big)), FP32_IEEE, 0, gpu, 120, memory_limit_bytes=2**30)
    assert found.batch is None
    assert found.reason is not None
    assert "out of memory" in found.reason
