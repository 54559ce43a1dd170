"""Tensor cores on a real GPU: known bodies are told apart, ceilings stand in a plausible order, energy is in bounds."""

import dataclasses
from contextlib import contextmanager, nullcontext

import pytest
import torch

from mpdiag.costs.tensor_cores import COPY, ELEMENTWISE, FP16_MATMUL, FP32_MATMUL
from mpdiag.device.block import read_block
from mpdiag.device.bodies import matmul_size, ready_body
from mpdiag.device.nvml import Nvml, RefusedError
from mpdiag.measure.ceiling import measure_ceilings
from mpdiag.measure.child import in_child
from mpdiag.measure.counters import KNOWN_SIZE, KNOWN_WITHIN
from mpdiag.measure.energy import energy_from, gpm_from, windows_of_arms
from mpdiag.measure.sharing import look_for_others
from mpdiag.measure.steady import skips_watched

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def measured():
    return measure_ceilings(torch.device("cuda", 0))


def test_sustained_speeds_stand_in_a_plausible_order(measured):
    ceilings, _ = measured
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("tensor cores with TF32 came with Ampere")
    speed = ceilings.tflops
    assert set(speed) == {"FP16", "BF16", "TF32", "FP32"}, ceilings.reasons
    assert speed["FP16"] > 4 * speed["FP32"] or torch.cuda.get_device_properties(0).name.startswith("NVIDIA GeForce")
    assert 0.7 < speed["FP16"] / speed["BF16"] < 1.4
    assert speed["FP32"] < speed["TF32"] < speed["FP16"]
    assert ceilings.copy_gbytes_per_second > 100


def test_every_ceiling_has_its_window_and_its_clock_and_a_burst_is_one(measured):
    ceilings, calibration = measured
    assert sum(ceilings.window_seconds.values()) == pytest.approx(ceilings.seconds)
    for name in (FP16_MATMUL, FP32_MATMUL):
        assert 0.95 < ceilings.window_seconds[name] < 1.6
    for body in calibration.bodies:
        if body.first_clock_mhz is None or body.sm_clock_mhz is None:
            pytest.skip("NVML tells no clock here")
        assert (body.body in ceilings.bursts) == (body.sm_clock_mhz < 0.97 * body.first_clock_mhz)


def test_a_burst_is_as_fast_as_what_is_sustained_or_faster_and_within_the_clocks_reach(measured):
    ceilings, calibration = measured
    assert set(ceilings.burst_tflops) == set(ceilings.tflops)
    for body in calibration.bodies:
        if body.tflops is None:
            assert body.burst_tflops is None
            continue
        # measured in the same second: a burst is slower only by events' and launches' own time
        assert body.burst_tflops > 0.97 * body.tflops
        assert body.burst_tflops < 2 * body.tflops
    assert set(ceilings.burst_clock_mhz) <= {FP16_MATMUL, "BF16 matmul", "TF32 matmul", FP32_MATMUL}


def test_a_gpu_said_to_be_shared_is_not_measured(gpu):
    ceilings, calibration = measure_ceilings(gpu, shared="others work here")
    assert (ceilings.tflops, ceilings.burst_tflops) == ({}, {})
    assert set(ceilings.reasons.values()) == {"others work here"}
    assert not calibration.usable


def test_the_fp32_body_is_ieee_and_the_tf32_body_is_not(measured):
    _, calibration = measured
    error = {body.body: body.relative_error for body in calibration.bodies}
    assert error[FP32_MATMUL] < 1e-5 < 1e-4 < error["TF32 matmul"] < 1e-2


def test_gpm_tells_products_in_tensor_cores_from_other_work(measured):
    _, calibration = measured
    if all(body.gpm is None for body in calibration.bodies):
        pytest.skip(f"GPM: {calibration.reason}")
    assert calibration.usable, calibration.reason
    share = {body.body: body.tensor_share for body in calibration.bodies}
    for name in (FP16_MATMUL, "BF16 matmul", "TF32 matmul"):
        assert share[name] > 4 * calibration.threshold
    for name in (FP32_MATMUL, ELEMENTWISE, COPY):
        assert share[name] < calibration.threshold


def test_measuring_ceilings_leaves_random_numbers_settings_and_memory_as_they_were(gpu):
    before = torch.cuda.get_rng_state(), torch.backends.cuda.matmul.fp32_precision, torch.cuda.memory_allocated()
    measure_ceilings(gpu, seconds=0.6, names=(FP32_MATMUL, "TF32 matmul"))
    after = torch.cuda.get_rng_state(), torch.backends.cuda.matmul.fp32_precision, torch.cuda.memory_allocated()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


class _Body:
    """A body in the place of an arm; `samples` stands for its batch size."""

    samples, batch_sizes = 16, (16,)

    def __init__(self, step):
        self.step = step

    def skips_watched(self):
        return skips_watched(None)

    def in_force_again(self):
        return nullcontext(self.step)


def test_energy_and_activity_of_windows_in_turns(gpu, measured):
    _, calibration = measured

    @contextmanager
    def ready(name):
        with ready_body(name, matmul_size(gpu), gpu) as body:
            yield _Body(body.step)

    windows = windows_of_arms((FP32_MATMUL, FP16_MATMUL), ready, gpu, 2.5, 3)
    assert not windows.sharing.busy, windows.sharing.reason
    fp32, fp16 = energy_from(windows)
    if fp16.joules_per_sample is None:
        pytest.skip(f"energy: {fp16.reason}")
    limit = Nvml(gpu).ask("limit", "nvmlDeviceGetEnforcedPowerLimit") / 1000
    for use in (fp32, fp16):
        assert use.idle_watts < use.watts < 1.1 * limit
        assert use.interval[0] <= use.joules_per_sample <= use.interval[1]
        assert 0 < use.joules_per_sample_above_idle < use.joules_per_sample, use.above_idle_reason
        assert 0 < use.idle_share < 1
    assert fp16.joules_per_sample < fp32.joules_per_sample / 4
    if calibration.usable:
        plain, products = gpm_from(windows, calibration)
        assert (plain.used, products.used) == (None, True)


def test_few_windows_of_energy_tell_nothing_above_idle(gpu):
    @contextmanager
    def ready(name):
        with ready_body(name, matmul_size(gpu), gpu) as body:
            yield _Body(body.step)

    (use,) = energy_from(windows_of_arms((FP16_MATMUL,), ready, gpu, 2.5, 1))
    assert use.joules_per_sample_above_idle is None
    assert use.above_idle_reason


def test_a_rest_reads_idle(gpu):
    sharing, rest = look_for_others(gpu)
    assert sharing.state.power_watts is None
    assert sharing.busy is not True, sharing.reason
    if rest.tick_seconds is not None:
        assert 0.005 < rest.tick_seconds < 1.5


def test_the_state_under_load_has_a_clock_and_a_power(gpu):
    nvml = Nvml(gpu)
    with ready_body(FP16_MATMUL, matmul_size(gpu), gpu) as body:
        block = read_block(nvml, body.step, 0.5, gpu)
    for state in block.reading.states:
        assert state.sm_clock_mhz is None or 200 < state.sm_clock_mhz < 4000
    try:
        listed = nvml.ask("processes", "nvmlDeviceGetComputeRunningProcesses")
    except RefusedError as error:
        pytest.skip(str(error))
    assert len(nvml.processes()) <= len(listed)
    assert block.reading.others == 0


def test_counters_count_a_known_product():
    reply = in_child("mpdiag.measure.counters:count_known", {"device": "cuda:0"}, 180)
    if reply.value is None or reply.value["error"]:
        pytest.skip(f"CUPTI: {reply.reason or reply.value['error']}")
    found = {name: sum(values.values()) for name, (values, _) in reply.value["found"].items()}
    assert found["fp16"] == pytest.approx(2 * KNOWN_SIZE**3, rel=KNOWN_WITHIN)
    assert {name: found[name] for name in ("bf16", "tf32") if name in found} in ({}, {"bf16": 0.0, "tf32": 0.0})


def test_counters_name_the_arithmetic_of_a_step(tmp_path, gpu):
    from mpdiag.measure.counters import counters_of_arm
    from mpdiag.target import load_job
    from mpdiag.training.precision import FP16_AUTOCAST, FP32_IEEE, Precision

    path = tmp_path / "model.py"
    path.write_text(
        "import torch\n"
        # as large as the known product: with 256 rows of 1024, kernels on an H100 computed 6 % more than was asked for
        f"def build_model(): return torch.nn.Linear({KNOWN_SIZE}, {KNOWN_SIZE}, bias=False)\n"
        f"def train_batches(): return [[torch.randn({KNOWN_SIZE}, {KNOWN_SIZE}) for _ in range(2)]]\n"
        "def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()\n"
    )
    job = load_job(str(path))
    arms = {"fp16": FP16_AUTOCAST, "tf32": Precision("TF32", tf32=True), None: FP32_IEEE}
    for dtype, precision in arms.items():
        found = counters_of_arm(precision.name, job, precision, 0, gpu)
        if found.operations is None:
            pytest.skip(f"CUPTI: {found.reason}")
        # forward and the weight's gradient; the input needs none
        expected = {name: 2 * 2 * KNOWN_SIZE**3 if name == dtype else 0 for name in ("fp16", "bf16", "tf32")}
        for name, operations in expected.items():
            assert found.operations[name] == pytest.approx(operations, rel=0.02), dataclasses.asdict(found)


def test_fp32_attention_runs_on_tensor_cores_in_tf32_and_its_kernels_are_known_by_name(tmp_path, gpu):
    from mpdiag.costs.kernel_names import splits_fp32
    from mpdiag.costs.ladder import ladder_of
    from mpdiag.measure.counters import WARMUP_STEPS, counters_of_arm
    from mpdiag.measure.steady import steady_run
    from mpdiag.measure.trace import trace_arm
    from mpdiag.target import load_job
    from mpdiag.training.precision import FP32_IEEE

    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("tensor cores with TF32 came with Ampere")
    batch, heads, length, width = 16, 4, 256, 64
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\n"
        "from torch.nn.attention import SDPBackend, sdpa_kernel\n"
        "class Attention(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.ones(()))\n"
        "    def forward(self, x):\n"
        "        q, k, v = (part * self.scale for part in x.unbind(1))\n"
        "        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):\n"
        "            return torch.nn.functional.scaled_dot_product_attention(q, k, v)\n"
        "def build_model(): return Attention()\n"
        f"def train_batches(): return [torch.randn({batch}, 3, {heads}, {length}, {width}) for _ in range(2)]\n"
        "def compute_loss(model, batch): return (model(batch) ** 2).mean()\n"
    )
    job = load_job(str(path))
    with steady_run(job, job.start(0, 1), FP32_IEEE, gpu, WARMUP_STEPS) as run:
        traced = dataclasses.replace(trace_arm(run), arm="fp32")
    attention = [kernel for kernel in traced.time.top if splits_fp32(kernel.name)]
    assert attention, [kernel.name for kernel in traced.time.top]
    assert any("attention (fmha_cutlass" in told for told in ladder_of(traced).disagreements)
    found = counters_of_arm("fp32", job, FP32_IEEE, 0, gpu)
    if found.operations is None:
        pytest.skip(f"CUPTI: {found.reason}")
    products = 7 * 2 * batch * heads * length**2 * width  # two forward, five backward
    assert found.operations["fp16"] == found.operations["bf16"] == 0
    assert 2.9 * products < found.operations["tf32"] < 6.5 * products, dataclasses.asdict(found)
