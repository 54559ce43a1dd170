"""The device rooms without a GPU: the environment, and which device; NVML is in test_nvml.py."""

from __future__ import annotations

import platform
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import mpdiag
import report_samples as samples
from fake_nvml import UUID, FakeNvml, install
from mpdiag.device.environment import describe
from mpdiag.device.precision_settings import configured
from mpdiag.device.select import select_device
from mpdiag.errors import UsageError
from mpdiag.origin import MATMUL_FLAGS
from mpdiag.report.html import render

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return install(monkeypatch)


# select


def without_cuda(monkeypatch: pytest.MonkeyPatch, build: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)


@pytest.mark.parametrize(
    ("build", "why"), [(None, "this torch is a CPU build"), ("13.0", "torch finds no CUDA device")]
)
def test_cuda_without_cuda_is_a_usage_error_that_says_why(monkeypatch, build, why):
    without_cuda(monkeypatch, build)
    with pytest.raises(UsageError) as caught:
        select_device("cuda")
    assert (caught.value.slug, caught.value.exit_code) == ("no-cuda", 2)
    assert caught.value.message == f"--device cuda: {why}"
    assert "--device cpu" in caught.value.hint


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    without_cuda(monkeypatch, None)
    assert select_device("auto") == CPU


def test_auto_and_cuda_are_the_first_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto") == select_device("cuda") == CUDA


def test_cpu_is_the_cpu_even_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("cpu") == CPU


# environment


def test_the_environment_of_a_cpu_has_versions_and_no_gpu():
    found = describe(CPU)
    assert (found.python, found.torch, found.mpdiag) == (
        platform.python_version(),
        torch.__version__,
        mpdiag.__version__,
    )
    assert (found.gpu, found.compute_capability, found.driver) == (None, None, None)
    assert found.cpu_threads == torch.get_num_threads()
    assert found.platform == f"{platform.system()} {platform.machine()}"
    assert found.fp32_precision == configured(CPU)


def test_the_environment_of_a_cpu_asks_nvml_nothing(fake):
    describe(CPU)
    assert fake.asked == []


def test_the_environment_of_a_cpu_has_no_settings_of_cuda(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    found = describe(CPU)
    assert (found.cudnn_benchmark, found.matmul_flags, found.overrides) == (None, {}, {})


def test_the_environment_of_a_gpu_has_the_settings_that_change_its_arithmetic(fake, gpu_of_a_name, monkeypatch):
    monkeypatch.delenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", raising=False)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        found = describe(CUDA)
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before
    assert (found.cudnn_benchmark, found.overrides) == (True, {"NVIDIA_TF32_OVERRIDE": "0"})
    assert found.matmul_flags["allow_bf16_reduced_precision_reduction"] is False
    assert found.unusual_settings == (
        "torch.backends.cudnn.benchmark = True",
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False",
        "NVIDIA_TF32_OVERRIDE=0",
    )


def test_an_untouched_torch_has_no_unusual_settings(fake, gpu_of_a_name, monkeypatch):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.delenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", raising=False)
    assert describe(CUDA).matmul_flags == MATMUL_FLAGS
    assert describe(CUDA).unusual_settings == ()


def test_the_page_shows_the_settings_that_are_not_torchs_and_no_others():
    diagnosis, told = samples.full(), "Not torch's defaults"
    usual = replace(diagnosis.environment, cudnn_benchmark=False, matmul_flags=MATMUL_FLAGS)
    assert told not in render(replace(diagnosis, environment=usual))
    unusual = replace(usual, cudnn_benchmark=True, overrides={"NVIDIA_TF32_OVERRIDE": "<0>"})
    shown = render(replace(diagnosis, environment=unusual)).split(told)[1].split("</div>")[0]
    assert "<code>torch.backends.cudnn.benchmark = True</code>, <code>NVIDIA_TF32_OVERRIDE=&lt;0&gt;</code>" in shown


@pytest.fixture
def gpu_of_a_name(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_the_environment_of_a_gpu_names_it(fake, gpu_of_a_name):
    found = describe(CUDA)
    assert (found.gpu, found.compute_capability, found.driver) == ("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")
