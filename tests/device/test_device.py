"""The device rooms without a GPU: settings that come back, the environment, which device; NVML is in test_nvml.py."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import mpdiag
import report_samples as samples
from fake_nvml import UUID, FakeNvml, install
from mpdiag.device.environment import describe
from mpdiag.device.precision_settings import configured, fp32_products, is_ieee
from mpdiag.device.select import select_device
from mpdiag.errors import UsageError
from mpdiag.origin import MATMUL_FLAGS
from mpdiag.report.html import render

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


ROOT, CUDA_PARENT, MKLDNN = torch.backends, torch.backends.cudnn, torch.backends.mkldnn.matmul
CHANGES = [(p, a, b) for p in (ROOT, CUDA_PARENT) for a, b in (("tf32", "ieee"), ("ieee", "tf32"), ("none", "ieee"))]


def changed_later(parent: object, first: str, then: str, within: str | None, own: tuple[object, ...] = ()) -> list:
    """The settings with a parent at `first`, and then at `then`; in between a run in FP32 products, or none."""
    seen = []
    try:
        parent.fp32_precision = first
        for switch in own:
            switch.fp32_precision = first
        if within:
            with fp32_products(within):
                pass
        for value in (first, then, "none"):
            parent.fp32_precision = value
            seen.append((all_settings(), ROOT.fp32_precision, CUDA_PARENT.fp32_precision))
    finally:
        for switch in (torch.backends.cuda.matmul, MKLDNN, CUDA_PARENT, ROOT):
            switch.fp32_precision = "none"
    return seen


@pytest.mark.parametrize("within", ["ieee", "tf32"])
@pytest.mark.parametrize(("parent", "first", "then"), CHANGES)
def test_a_setting_that_followed_its_parent_follows_it_afterwards(parent, first, then, within):
    plain = changed_later(parent, first, then, None)  # first: a setting that no longer follows would not here either
    assert changed_later(parent, first, then, within) == plain


@pytest.mark.parametrize("own", [torch.backends.cuda.matmul, CUDA_PARENT, MKLDNN])
def test_a_setting_of_the_users_own_stays_where_its_parent_says_the_same_at_the_time(own):
    plain = changed_later(ROOT, "tf32", "ieee", None, (own,))
    after = changed_later(ROOT, "tf32", "ieee", "ieee", (own,))
    assert after == plain
    assert "tf32" in after[1][0].values()


def test_tf32_within_ieee_and_out_again_leaves_what_was_inherited():
    with fp32_products("ieee"):
        before = all_settings()
        with fp32_products("tf32"):
            assert {value for name, value in all_settings().items() if not name.startswith("mkldnn")} == {"tf32"}
        assert all_settings() == before
    assert torch.backends.cuda.matmul.fp32_precision == "none"


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
