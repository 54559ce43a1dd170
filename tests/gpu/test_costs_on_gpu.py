"""What only a GPU can tell: FP32 that is IEEE, memory, time, pipe activity, energy."""

import math
import time

import pytest
import torch

from mpdiag.device.block import run_for
from mpdiag.device.nvml import Nvml
from mpdiag.device.precision_settings import configured, fp32_products
from mpdiag.device.stopwatch import time_block

pytestmark = pytest.mark.gpu


def _product(dtype, size=4096):
    a = torch.randn(size, size, device="cuda", dtype=dtype)
    return lambda: a @ a


def test_ieee_fp32_is_tighter_than_the_configured_tf32(gpu):
    a = torch.randn(1024, 1024, dtype=torch.float64)
    exact, single = a @ a, a.float().to(gpu)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        loose = (single @ single).cpu().double()
        with fp32_products("ieee"):
            tight = (single @ single).cpu().double()
        assert configured(gpu)["cuda.matmul"] == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    error = lambda got: float((got - exact).norm() / exact.norm())
    assert error(tight) < 1e-6 < 1e-4 < error(loose)


def test_time_of_a_known_body(gpu):
    step = _product(torch.float16, 8192)
    for _ in range(3):
        step()
    times, wall = time_block(step, 20, gpu)
    # 1.1e12 operations; an H100 cannot do them in less than 0.5 ms nor needs more than 10
    assert all(0.5 < ms < 10 for ms in times)
    assert wall == pytest.approx(sum(times) / 20, rel=0.2)


def test_gpm_tells_tensor_cores_from_plain_fp32(gpu):
    nvml = Nvml(gpu)
    shares = {}
    for name, step in (("fp16", _product(torch.float16)), ("fp32", _product(torch.float32))):
        with fp32_products("ieee"), nvml.window() as reading:
            run_for(step, 1.0, gpu)
            torch.cuda.synchronize()
        if reading.gpm is None:
            pytest.skip(f"GPM: {reading.reasons['tensor_core']}")
        shares[name] = reading.gpm["any_tensor"]
    assert shares["fp16"] > 0.5
    assert shares["fp32"] < 0.1


def test_energy_of_a_long_window_is_within_the_cards_power(gpu):
    step = _product(torch.float16)
    with Nvml(gpu).window() as reading:
        run_for(step, 2.5, gpu)
        torch.cuda.synchronize()
    assert reading.energy_joules is not None, reading.reasons
    watts = reading.energy_joules / reading.seconds
    assert 100 < watts < 1500


def test_a_short_window_gives_a_reason_and_no_energy(gpu):
    with Nvml(gpu).window() as reading:
        time.sleep(0.01)
    assert reading.energy_joules is None
    assert "energy" in reading.reasons  # too short, or the counter did not move meanwhile
    assert math.isclose(reading.seconds, 0.01, abs_tol=0.05)
