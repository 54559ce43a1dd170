"""The arithmetic that settings stand for, after a run has set them and put them back; and what a GPU's record has."""

import pytest
import torch

from mpdiag.device.environment import describe
from mpdiag.device.precision_settings import configured, fp32_products
from mpdiag.origin import MATMUL_FLAGS
from mpdiag.training.precision import FP32_IEEE, in_force
from mpdiag.verify.cascade.regions import users_regions

pytestmark = pytest.mark.gpu


def _error(gpu):
    """Of an FP32 product, relative: about 1e-7 in IEEE arithmetic, 1e-4 and more in TF32."""
    a = torch.randn(1024, 1024, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, single = a @ a, a.float().to(gpu)
    return float(((single @ single).cpu().double() - exact).norm() / exact.norm())


@pytest.fixture(autouse=True)
def _nothing_set_but_by_the_test():
    """torch.compile under a parent that is set leaves its value written to cuda.matmul, which then follows no more."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "none"
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


@pytest.mark.parametrize("parent", [torch.backends, torch.backends.cudnn], ids=["root", "cuda"])
def test_a_product_follows_the_parent_that_is_set_after_a_run(parent, gpu):
    parent.fp32_precision = "tf32"
    with fp32_products("ieee"):
        assert _error(gpu) < 1e-6
    assert _error(gpu) > 1e-4
    parent.fp32_precision = "ieee"
    assert _error(gpu) < 1e-6


def test_a_product_follows_its_parent_after_a_model_was_compiled_within_a_run(gpu):
    with fp32_products("ieee"):
        torch.compiler.reset()
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2, device=gpu))
    torch.backends.cudnn.fp32_precision = "tf32"
    assert _error(gpu) > 1e-4


def test_a_convolution_under_torchs_own_flags_is_ieee_again_after_them(gpu):
    a = torch.randn(8, 64, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = torch.randn(64, 64, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = torch.nn.functional.conv2d(a, w)

    def error():
        found = torch.nn.functional.conv2d(a.float().to(gpu), w.float().to(gpu)).cpu().double()
        return float((found - exact).norm() / exact.norm())

    with fp32_products("ieee"):
        assert error() < 1e-5
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            assert torch.backends.cudnn.allow_tf32 is False
        assert error() < 1e-5
    with fp32_products("tf32"):
        assert error() > 1e-4


def test_every_setting_is_afterwards_what_it_would_be_without_a_run(gpu):
    seen = []
    for scanned in (False, True):
        torch.backends.fp32_precision = "tf32"
        if scanned:
            with fp32_products("ieee"):
                assert set(configured(gpu).values()) == {"ieee"}
        found = [configured(gpu)]
        for value in ("ieee", "none"):
            torch.backends.fp32_precision = value
            found.append(configured(gpu))
        seen.append(found)
    assert seen[0] == seen[1]


def test_the_record_of_a_gpu_has_its_settings(gpu):
    found = describe(gpu)
    assert set(found.matmul_flags) <= set(MATMUL_FLAGS)
    assert found.cudnn_benchmark is torch.backends.cudnn.benchmark
    assert not any("matmul" in setting for setting in found.unusual_settings)


def test_the_users_regions_on_a_gpu_are_cudas_and_no_others(gpu):
    with in_force(FP32_IEEE, gpu) as region, users_regions(gpu) as wanted:
        with torch.autocast("cuda", enabled=False):
            assert wanted[-1] is False
        with torch.autocast("cpu", enabled=False):
            assert wanted[-1] is True
        with torch.autocast("cuda"):
            assert (wanted[-1], torch.is_autocast_enabled("cuda")) == (True, False)
    assert region.own_autocast == ["cuda"]
