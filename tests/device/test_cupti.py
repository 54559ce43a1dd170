"""CUPTI itself without a GPU: parameter blocks, the order of calls, and the real library's host side."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from cupti_samples import CHIPS, CUDA, PATH
from mpdiag.device import cupti as cupti_room
from mpdiag.device import cupti_structs as blocks
from mpdiag.device.cupti import Cupti, CuptiRefusedError, privileges
from mpdiag.measure.counters import (
    metrics_for,
)

# parameter blocks


@pytest.mark.parametrize(
    ("name", "size"),
    # offset of the last field and its bytes, from the API reference and the rules of C on a 64-bit machine
    [
        ("ProfilerInitialize", 16),
        ("DeviceGetChipName", 32),
        ("DeviceSupported", 52),
        ("HostInitialize", 48),
        ("HostDeinitialize", 24),
        ("HostGetSupportedChips", 32),
        ("HostGetBaseMetrics", 48),
        ("HostConfigAddMetrics", 40),
        ("HostGetConfigImageSize", 32),
        ("HostGetConfigImage", 40),
        ("HostGetNumOfPasses", 40),
        ("HostEvaluateToGpuValues", 72),
        ("RangeEnable", 32),
        ("RangeDisable", 24),
        ("RangeGetCounterDataSize", 64),
        ("RangeCounterDataImageInitialize", 40),
        ("RangeSetConfig", 90),
        ("RangeStart", 24),
        ("RangeStop", 41),
        ("RangePush", 32),
        ("RangePop", 24),
        ("RangeDecodeData", 32),
        ("RangeGetCounterDataInfo", 40),
    ],
)
def test_a_parameter_block_ends_at_its_last_field(name, size):
    block = getattr(blocks, name)()
    assert (block.size, block.private) == (size, None)


# counting


def test_one_step_runs_inside_one_range(fake):
    seen = []
    values, passes = Cupti().count("GH100", ["a.sum"], lambda: seen.append(list(fake.inside)), CUDA)
    assert (values, passes, seen) == ({"a.sum": 0.0}, 1, [["step"]])
    ours = [name.removeprefix("cuptiRangeProfiler") for name in fake.order if name.startswith("cuptiRange")]
    assert ours == [
        *("Enable", "GetCounterDataSize", "CounterDataImageInitialize", "SetConfig"),
        *("Start", "PushRange", "PopRange", "Stop", "DecodeData", "GetCounterDataInfo", "Disable"),
    ]


def test_a_counter_of_two_passes_runs_the_step_twice(fake):
    fake.passes = 2
    steps = []
    _, passes = Cupti().count("GH100", ["a.sum"], lambda: steps.append(1), CUDA)
    assert (passes, len(steps)) == (2, 2)


def test_passes_that_never_end_are_refused(fake):
    fake.passes = 1
    fake._cuptiRangeProfilerStop = lambda block: None
    with pytest.raises(CuptiRefusedError, match="1 passes were announced and 3 did not do"):
        Cupti().count("GH100", ["a.sum"], lambda: None, CUDA)
    assert fake.order[-1] == "cuptiRangeProfilerDisable"


@pytest.mark.parametrize(("field", "value"), [("dropped", 1), ("ranges", 0), ("ranges", 2)])
def test_lost_or_foreign_ranges_are_refused(fake, field, value):
    setattr(fake, field, value)
    with pytest.raises(CuptiRefusedError):
        Cupti().count("GH100", ["a.sum"], lambda: None, CUDA)


def test_what_the_step_raises_goes_on_and_the_profiler_is_taken_off(fake):
    with pytest.raises(ZeroDivisionError):
        Cupti().count("GH100", ["a.sum"], lambda: 1 / 0, CUDA)
    assert fake.order[-1] == "cuptiRangeProfilerDisable"


def test_every_call_is_listed_with_its_status(fake):
    fake.refusing = {"cuptiRangeProfilerStart": 35}
    cupti = Cupti()
    with pytest.raises(CuptiRefusedError):
        cupti.count("GH100", ["a.sum"], lambda: None, CUDA)
    assert ("cuptiRangeProfilerStart", 35) in cupti.calls
    assert cupti.calls[-1] == ("cuptiRangeProfilerDisable", 0)


def test_without_the_library_that_is_the_reason(monkeypatch):
    def missing(name, mode=0):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cupti_room.ctypes, "CDLL", missing)
    with pytest.raises(CuptiRefusedError, match=r"^CUPTI is not there: libcupti\.so\.13: cannot open"):
        Cupti()


def test_privileges_are_said_in_words():
    said = privileges()
    if sys.platform == "linux" and Path("/proc/self/status").exists():
        assert "CAP_SYS_ADMIN" in said


# the real library, where a wheel of it is installed; its host side needs no GPU


def real_cupti() -> Cupti:
    spec = importlib.util.find_spec("nvidia")
    for folder in [Path(place) / "cu13" / "lib" for place in (spec.submodule_search_locations if spec else [])]:
        if (folder / "libcupti.so.13").exists():
            return Cupti(folder)
    pytest.skip("no wheel of nvidia-cuda-cupti 13 is installed")


def test_the_real_library_takes_our_blocks_and_has_the_counters_we_ask_for():
    cupti = real_cupti()
    for chip, expected in CHIPS.items():
        names = cupti.base_metrics(chip)
        assert {f"{PATH}{name}" for name in expected} <= set(names)
        assert metrics_for(names)["fp16"] == metrics_for([f"{PATH}{name}" for name in expected])["fp16"]
    _, passes = cupti.config_image("GH100", [f"{PATH}bf16_dst_fp32.sum"])
    assert passes == 1
    with pytest.raises(CuptiRefusedError, match=r"cuptiProfilerHostInitialize returned 46"):
        cupti.base_metrics("XX100")
