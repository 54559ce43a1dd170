"""Ceilings and calibration: from the readings of known bodies to a threshold, and what is claimed above it."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fake_nvml import CUDA, FakeNvml, install
from mpdiag import saved
from mpdiag.costs.calibration import MARGIN, calibrate, ceilings, judge_gpm, still_falling
from mpdiag.costs.tensor_cores import (
    BODIES,
    COPY,
    ELEMENTWISE,
    FP16_MATMUL,
    FP32_MATMUL,
    BodyReading,
    Calibration,
    Ceilings,
    GpmEvidence,
    share_of_active,
)
from mpdiag.device import bodies as bodies_room
from mpdiag.device.bodies import Body, matmul_size, unsupported
from mpdiag.measure import ceiling as ceiling_room
from mpdiag.measure.ceiling import measure_ceilings

CPU = torch.device("cpu")
# tensor pipe and multiprocessors in percent of the time, as an H100 reads them; TFLOP/s or GB/s
H100 = {
    "FP16 matmul": (86.1, 99.0, 760.0),
    "BF16 matmul": (85.1, 99.0, 770.0),
    "TF32 matmul": (84.6, 99.0, 420.0),
    "IEEE FP32 matmul": (0.0, 99.0, 50.0),
    "FP16 elementwise": (2.2, 98.0, 2800.0),
    "copy": (0.1, 50.0, 2900.0),
}


def body(name: str, tensor: float | None = None, sm: float = 99.0, **changes) -> BodyReading:
    gpm = None if tensor is None else {"any_tensor": tensor / 100, "sm": sm / 100}
    return BodyReading(name, 0.5, gpm=gpm, **changes)


def h100(**percent: float | None) -> list[BodyReading]:
    """The bodies of an H100, some with another reading: fp16=..., ieee=..., elementwise=..."""
    named = {"fp16": FP16_MATMUL, "ieee": FP32_MATMUL, "elementwise": ELEMENTWISE}
    readings = {name: value[0] for name, value in H100.items()} | {named[k]: v for k, v in percent.items()}
    return [
        body(
            name,
            readings[name],
            sm,
            tflops=None if name in (ELEMENTWISE, COPY) else speed,
            gbytes_per_second=speed if name in (ELEMENTWISE, COPY) else None,
            relative_error=2e-7 if name == FP32_MATMUL else None,
            gpm_reason="GPM counters: Insufficient Permissions" if readings[name] is None else None,
        )
        for name, (_, sm, speed) in H100.items()
    ]


# the threshold


def test_the_threshold_of_an_h100_lies_between_additions_and_products():
    found = calibrate(h100())
    assert found.usable
    assert found.reason is None
    assert found.floor == pytest.approx(0.022 / 0.98)
    assert found.threshold == pytest.approx(0.022 / 0.98 + MARGIN)
    assert found.top == pytest.approx(0.861 / 0.99)
    assert [b.body for b in found.bodies] == list(BODIES)


def test_a_high_floor_has_a_margin_in_proportion():
    found = calibrate(h100(elementwise=9.8))
    assert found.usable
    assert found.threshold == pytest.approx(0.15)


def test_an_ieee_product_that_reads_high_makes_the_calibration_unusable():
    found = calibrate(h100(ieee=80.0))
    assert (found.usable, found.threshold) == (False, None)
    assert "reads 81% on the tensor pipe" in found.reason
    assert "NVIDIA_TF32_OVERRIDE" in found.reason


def test_an_fp16_product_that_reads_low_makes_it_unusable():
    found = calibrate(h100(fp16=10.0))
    assert (found.usable, found.threshold) == (False, None)
    assert found.reason.startswith(
        "the FP16 matmul reads 10.1% on the tensor pipe and work without matrix products 2.2%"
    )


def test_elementwise_work_that_lights_the_pipe_up_makes_it_unusable():
    assert not calibrate(h100(elementwise=40.0)).usable


def test_a_product_that_is_off_like_tf32_is_not_ieee_whatever_the_pipe_reads():
    bodies = [dataclasses.replace(b, relative_error=3e-4) if b.body == FP32_MATMUL else b for b in h100()]
    found = calibrate(bodies)
    assert not found.usable
    assert "is off by 3.0e-04" in found.reason
    ceiling = ceilings(bodies, 8192)
    assert "FP32" not in ceiling.tflops
    assert "NVIDIA_TF32_OVERRIDE" in ceiling.reasons["FP32"]


@pytest.mark.parametrize("missing", ["fp16", "ieee", "elementwise"])
def test_a_body_without_a_reading_makes_it_unusable_with_nvmls_words(missing):
    found = calibrate(h100(**{missing: None}))
    assert (found.usable, found.threshold, found.floor, found.top) == (False, None, None, None)
    assert found.reason.endswith("matmul: GPM counters: Insufficient Permissions") or missing == "elementwise"
    assert "Insufficient Permissions" in found.reason


def test_a_body_that_was_not_run_makes_it_unusable():
    assert calibrate(h100()[1:]).reason == "FP16 matmul: it was not run"


@given(*[st.floats(0, 100) for _ in range(3)])
def test_a_usable_threshold_is_above_the_floor_and_far_below_fp16(fp16, ieee, elementwise):
    found = calibrate(h100(fp16=fp16, ieee=ieee, elementwise=elementwise))
    if found.usable:
        assert found.floor + MARGIN <= found.threshold <= found.top / 4
    else:
        assert found.threshold is None
        assert found.reason


def test_the_tensor_share_is_of_the_active_time():
    assert share_of_active({"any_tensor": 0.02, "sm": 0.1}) == pytest.approx(0.2)
    assert share_of_active({"any_tensor": 0.5, "sm": 0.4}) == 1.0
    assert share_of_active({"any_tensor": 0.0, "sm": 0.0}) is None
    assert share_of_active({"sm": 0.4}) is None
    assert share_of_active({"any_tensor": 0.5}) is None
    assert share_of_active(None) is None


# claims


def judged(tensor: float, sm: float = 1.0, calibration: Calibration | None = None) -> GpmEvidence:
    return judge_gpm("fp16", {"any_tensor": tensor, "sm": sm}, 6.0, calibration or calibrate(h100()), None)


def test_an_arm_above_the_threshold_used_tensor_cores():
    found = judged(0.3)
    assert found.used is True
    assert found.reason is None
    assert (found.share, found.share_of_active) == (0.3, 0.3)
    assert found.above_floor == pytest.approx(0.3 - 0.022 / 0.98)


def test_an_arm_at_the_noise_floor_is_no_proof_of_either():
    found = judged(0.03)
    assert found.used is None
    assert found.reason.startswith("3.0% of the active time is not above the threshold of 4.2%")
    assert found.share == 0.03


def test_a_gpu_that_mostly_waits_is_judged_by_its_active_time():
    assert judged(0.02, sm=0.05).used is True
    assert judged(0.001, sm=0.05).used is None


def test_without_a_usable_calibration_there_is_no_claim():
    found = judged(0.5, calibration=calibrate(h100(ieee=80.0)))
    assert found.used is None
    assert found.above_floor is None
    assert found.reason.startswith("the calibration is not usable: ")


def test_a_gpu_where_nothing_ran_has_no_claim():
    assert judged(0.0, sm=0.0).reason == "no multiprocessor was active"


def test_an_arm_without_a_reading_has_its_reason_and_no_zero():
    found = judge_gpm("fp16", {"any_tensor": 0.5, "sm": 1.0}, 6.0, calibrate(h100()), "2 other processes")
    assert (found.used, found.share, found.gpm, found.reason) == (None, None, None, "2 other processes")
    none = judge_gpm("fp16", {"sm": 1.0}, 6.0, calibrate(h100()), None)
    assert (none.share, none.reason) == (None, "GPM gave no reading of the tensor pipe")


# ceilings


def test_ceilings_are_named_by_arithmetic():
    found = ceilings(h100(), 8192)
    assert found.tflops == {"FP16": 760.0, "BF16": 770.0, "TF32": 420.0, "FP32": 50.0}
    assert found.copy_gbytes_per_second == 2900.0
    assert (found.matmul_size, found.seconds, found.reasons) == (8192, 3.0, {})


def test_a_ceiling_that_was_not_measured_has_its_reason():
    found = ceilings([body(FP16_MATMUL, reason="no room")], None)
    assert found.tflops == {}
    assert found.reasons == {
        "FP16": "no room",
        "BF16": "not measured",
        "TF32": "not measured",
        "FP32": "not measured",
        "copy": "not measured",
    }


def test_on_a_cpu_everything_needs_a_gpu():
    ceiling, calibration = measure_ceilings(CPU)
    assert ceiling.tflops == {}
    assert set(ceiling.reasons.values()) == {"needs a CUDA GPU"}
    assert not calibration.usable
    assert calibration.reason == "FP16 matmul: needs a CUDA GPU"


# measuring, on a fake GPU


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A card that does 2 * 1024^3 operations in 10 ms, and reads as an H100 does."""
    library = install(monkeypatch)
    monkeypatch.setattr(ceiling_room, "time", library.clock)
    monkeypatch.setattr(ceiling_room, "release_memory", lambda: None)
    monkeypatch.setattr(ceiling_room, "matmul_size", lambda device: 1024)
    monkeypatch.setattr(ceiling_room, "unsupported", lambda name, device: None)

    @contextmanager
    def ready_body(name, size, device):
        tensor, sm, _ = H100[name]
        library.values |= {"any_tensor": tensor, "sm": sm}
        known = {"operations": 2 * size**3} if name.endswith("matmul") else {"bytes": 10**9}
        yield Body(name, lambda: library.spend(0.01), **known)

    monkeypatch.setattr(ceiling_room, "ready_body", ready_body)
    return library


def test_a_ceiling_is_operations_by_event_time(fake):
    began = fake.clock.now
    ceiling, calibration = measure_ceilings(CUDA)
    assert fake.clock.now - began < 8.0
    assert ceiling.tflops["FP16"] == pytest.approx(2 * 1024**3 / 0.01 / 1e12)
    assert ceiling.copy_gbytes_per_second == pytest.approx(100.0)
    assert ceiling.sm_clock_mhz == dict.fromkeys(BODIES, 1980)
    assert ceiling.power_watts == dict.fromkeys(BODIES, 100.0)
    assert ceiling.seconds == pytest.approx(4 * 1.025 + 2 * 0.336, rel=0.05)
    assert ceiling.window_seconds["FP16 matmul"] == pytest.approx(1.025, rel=0.02)
    assert ceiling.window_seconds["copy"] == pytest.approx(0.336, rel=0.04)
    assert ceiling.bursts == {}
    assert calibration.usable
    assert calibration.threshold == pytest.approx(0.022 / 0.98 + MARGIN)


def test_a_held_down_clock_is_noted_beside_the_ceiling(fake):
    fake.limits = 0x4
    ceiling, _ = measure_ceilings(CUDA)
    assert ceiling.limited_by == dict.fromkeys(BODIES, ("power cap",))


def test_a_clock_that_falls_within_the_window_is_told_to_be_not_steady(fake, monkeypatch):
    real = ceiling_room.ready_body

    @contextmanager
    def heating(name, size, device):
        fake.clock_mhz = 1980
        with real(name, size, device) as ready:

            def step():
                ready.step()
                fake.clock_mhz -= 1 if name == "FP16 matmul" else 0

            yield dataclasses.replace(ready, step=step)

    monkeypatch.setattr(ceiling_room, "ready_body", heating)
    fake.limits = 0x4
    ceiling, _ = measure_ceilings(CUDA)
    assert set(ceiling.bursts) == {"FP16 matmul"}
    said = ceiling.bursts["FP16 matmul"]
    assert said.startswith("not steady yet: the clock fell from 1,9")
    assert said.endswith("MHz within 1.0 s (power cap)")


@pytest.mark.parametrize(
    ("first", "last", "falls"), [(1980, 1921, False), (1980, 1900, True), (None, 1900, False), (1380, 1440, False)]
)
def test_a_clock_is_not_steady_where_it_fell_by_three_percent(first, last, falls):
    reading = body(FP16_MATMUL, 86.0, tflops=700.0, first_clock_mhz=first, sm_clock_mhz=last)
    assert (still_falling(reading) is not None) is falls
    assert still_falling(dataclasses.replace(reading, reason="2 other processes")) is None


def heating(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch, cold_seconds: float) -> None:
    """A card whose steps take 10 ms for so long after a rest and 20 ms from then on; a rest is half a tenth or more."""
    real, busy = ceiling_room.ready_body, {"since": 0.0, "last": 0.0}

    @contextmanager
    def ready_body(name, size, device):
        with real(name, size, device) as ready:

            def step():
                now = fake.clock.now
                busy["since"] = now if now - busy["last"] >= 0.05 else busy["since"]
                hot = now - busy["since"] >= cold_seconds
                fake.clock_mhz = 1350 if hot else 1980
                fake.spend(0.02 if hot else 0.01)
                busy["last"] = fake.clock.now

            yield dataclasses.replace(ready, step=step)

    monkeypatch.setattr(ceiling_room, "ready_body", ready_body)


@pytest.mark.parametrize("cold_seconds", [0.045, 0.055])
def test_a_burst_is_the_fastest_steps_before_the_clock_falls_and_the_sustained_ceiling_those_after(
    fake, monkeypatch, cold_seconds
):
    heating(fake, monkeypatch, cold_seconds)
    ceiling, calibration = measure_ceilings(CUDA)
    whole = 2 * 1024**3 / 0.01 / 1e12
    assert ceiling.burst_tflops == {name: pytest.approx(whole) for name in ("FP16", "BF16", "TF32", "FP32")}
    assert ceiling.tflops == {name: pytest.approx(whole / 2, rel=0.05) for name in ("FP16", "BF16", "TF32", "FP32")}
    assert ceiling.sm_clock_mhz["FP16 matmul"] == 1350
    assert ceiling.burst_clock_mhz == dict.fromkeys(BODIES[:4], 1980)
    assert [body.burst_tflops for body in calibration.bodies[4:]] == [None, None]


def test_a_burst_is_no_lower_than_what_is_sustained():
    reading = dataclasses.replace(body(FP16_MATMUL, 86.0), tflops=700.0, burst_tflops=650.0)
    assert ceilings([reading], 8192).burst_tflops == {"FP16": 700.0}


def test_an_fp32_burst_in_tf32_is_no_ceiling():
    reading = dataclasses.replace(body(FP32_MATMUL, 86.0), tflops=300.0, burst_tflops=350.0, relative_error=3e-4)
    assert ceilings([reading], 8192).burst_tflops == {}


def test_layers_are_held_against_the_burst_where_there_is_one():
    found = Ceilings({"FP16": 658.0, "FP32": 51.0}, None, 8192, 1.0, burst_tflops={"FP16": 810.0})
    assert [found.of_layers(name) for name in ("FP16", "FP32", "BF16")] == [(810.0, True), (51.0, False), (None, False)]


def test_a_gpu_that_is_known_to_be_shared_runs_nothing_and_every_reading_has_that_reason(fake, monkeypatch):
    monkeypatch.setattr(ceiling_room, "ready_body", None)
    why = "the GPU was busy with other work before this run: active 60% of the time"
    ceiling, calibration = measure_ceilings(CUDA, shared=why)
    assert (ceiling.tflops, ceiling.burst_tflops, ceiling.copy_gbytes_per_second) == ({}, {}, None)
    assert set(ceiling.reasons.values()) == {why}
    assert (calibration.usable, calibration.reason) == (False, f"FP16 matmul: {why}")


def test_ceilings_of_an_older_record_have_no_burst():
    plain = saved._plain(dataclasses.asdict(ceilings(h100(), 8192)))
    older = {name: value for name, value in plain.items() if not name.startswith("burst_")}
    assert saved._typed(Ceilings, json.loads(json.dumps(older))).burst_tflops == {}


def test_a_body_is_long_enough_for_gpm_however_short_it_was_asked_for(fake):
    _, calibration = measure_ceilings(CUDA, seconds=0.01)
    assert calibration.usable


def test_without_gpm_there_are_ceilings_and_no_calibration(fake):
    fake.gpm_supported = False
    ceiling, calibration = measure_ceilings(CUDA)
    assert set(ceiling.tflops) == {"FP16", "BF16", "TF32", "FP32"}
    assert not calibration.usable
    assert calibration.reason == "FP16 matmul: this GPU has no GPM counters (Hopper and later have)"


def test_another_process_leaves_no_ceiling_and_no_reading(fake):
    fake.processes = [1234567, *fake.processes]
    ceiling, calibration = measure_ceilings(CUDA)
    why = "1 other process(es) used this GPU meanwhile"
    assert ceiling.tflops == ceiling.burst_tflops == ceiling.burst_clock_mhz == {}
    assert set(ceiling.reasons.values()) == {why}
    assert calibration.reason == f"FP16 matmul: {why}"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU's memory has no room for it"),
        (RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nmore"), "CUBLAS_STATUS_NOT_SUPPORTED"),
    ],
)
def test_a_body_that_fails_leaves_the_others(fake, monkeypatch, error, why):
    real = ceiling_room.ready_body

    @contextmanager
    def failing(name, size, device):
        if name == "BF16 matmul":
            raise error
        with real(name, size, device) as ready:
            yield ready

    monkeypatch.setattr(ceiling_room, "ready_body", failing)
    ceiling, calibration = measure_ceilings(CUDA)
    assert set(ceiling.tflops) == {"FP16", "TF32", "FP32"}
    assert ceiling.reasons == {"BF16": why}
    assert calibration.usable


def test_a_gpu_without_room_has_that_as_the_reason(fake, monkeypatch):
    monkeypatch.setattr(ceiling_room, "matmul_size", lambda device: None)
    ceiling, _ = measure_ceilings(CUDA)
    assert set(ceiling.reasons.values()) == {"the GPU's memory has no room for it"}


@pytest.mark.parametrize(("free", "size"), [(80e9, 8192), (2.5e9, 8192), (2.3e9, 4096), (2e8, 2048), (1e8, None)])
def test_the_products_are_as_large_as_memory_has_room_for(monkeypatch, free, size):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert matmul_size(CUDA) == size


@pytest.mark.parametrize(
    ("capability", "names"), [((7, 5), ["BF16 matmul", "TF32 matmul"]), ((8, 0), []), ((9, 0), [])]
)
def test_gpus_before_ampere_have_no_bf16_and_no_tf32(monkeypatch, capability, names):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert [name for name in BODIES if unsupported(name, CUDA)] == names


def test_an_ieee_product_on_this_cpu_is_off_by_less_than_tf32s(monkeypatch):
    error = bodies_room._error(CPU, torch.Generator().manual_seed(0))
    assert 0 < error < 1e-5


# saved


@pytest.mark.parametrize(
    "record",
    [
        calibrate(h100()),
        ceilings(h100(), 8192),
        judge_gpm("fp16", {"any_tensor": 0.3, "sm": 0.9}, 6.0, calibrate(h100()), None),
    ],
)
def test_a_record_comes_back_from_json_equal(record):
    text = json.dumps(saved._plain(dataclasses.asdict(record)))
    assert saved._typed(type(record), json.loads(text)) == record
    assert isinstance(record, Calibration | Ceilings | GpmEvidence)
