"""The device rooms without a GPU: settings that come back, the environment, which device; NVML is in test_nvml.py."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # --import-mode=importlib adds no folder for neighbours

from fake_nvml import UUID, FakeNvml, install

import mpdiag
from mpdiag.device.environment import describe
from mpdiag.device.precision_settings import configured, fp32_products, is_ieee
from mpdiag.device.select import select_device
from mpdiag.errors import UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return install(monkeypatch)


# precision settings


def all_settings() -> dict[str, str]:
    return {**configured(CPU), **configured(CUDA)}


@pytest.fixture
def mixed_settings() -> Iterator[dict[str, str]]:
    """The user's settings: TF32 here, BF16 there; put back after the test."""
    switches = (torch.backends.cuda.matmul, "tf32"), (torch.backends.mkldnn.matmul, "bf16")
    before = [(s, s.fp32_precision) for s, _ in switches]
    for switch, value in switches:
        switch.fp32_precision = value
    yield all_settings()
    for switch, value in before:
        switch.fp32_precision = value


def test_within_ieee_fp32_every_switch_says_ieee(mixed_settings):
    assert {mixed_settings["cuda.matmul"], mixed_settings["mkldnn.matmul"]} == {"tf32", "bf16"}
    with fp32_products("ieee"):
        assert set(all_settings().values()) == {"ieee"}
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_the_users_settings_come_back(mixed_settings):
    with fp32_products("ieee"):
        pass
    assert all_settings() == mixed_settings


def test_the_users_settings_come_back_after_an_exception(mixed_settings):
    with pytest.raises(ZeroDivisionError), fp32_products("ieee"):
        raise ZeroDivisionError
    assert all_settings() == mixed_settings


def test_the_users_settings_come_back_after_nesting(mixed_settings):
    with fp32_products("ieee"), fp32_products("ieee"):
        pass
    assert all_settings() == mixed_settings


def test_a_device_has_the_switches_of_its_own_backends():
    assert {name.partition(".")[0] for name in configured(CPU)} == {"mkldnn"}
    assert {name.partition(".")[0] for name in configured(CUDA)} == {"cuda", "cudnn"}


def test_settings_are_ieee_when_no_switch_of_the_device_lowers_them(mixed_settings):
    assert is_ieee(CPU) is False
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    assert is_ieee(CPU) is True


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


def test_the_environment_of_a_gpu_names_it(fake, monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    found = describe(CUDA)
    assert (found.gpu, found.compute_capability, found.driver) == ("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")
