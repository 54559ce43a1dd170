"""CUPTI's counters without a GPU: parameter blocks, the order of calls, which counters a chip has, every refusal."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mpdiag import saved
from mpdiag.costs.tensor_cores import CounterEvidence
from mpdiag.device import cupti as cupti_room
from mpdiag.device import cupti_structs as blocks
from mpdiag.device.bodies import Body
from mpdiag.device.cupti import END_OTHERS, PERMIT, Cupti, CuptiRefusedError, privileges
from mpdiag.measure import counters
from mpdiag.measure.again import cannot_start_again, request_for
from mpdiag.measure.child import Reply, in_child
from mpdiag.measure.counters import (
    CONSTANTS,
    INSTRUCTIONS,
    KNOWN_SIZE,
    count,
    counters_of_arm,
    evidence_of,
    metrics_for,
)
from mpdiag.target import load_job
from mpdiag.training.precision import FP16_AUTOCAST

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PATH = "sm__ops_path_tensor_src_"
# the counters that decide, as CUPTI 13.0 names them for each chip
CHIPS = {
    "GV100": ["fp16_dst_fp16", "fp16_dst_fp32"],
    "TU102": ["fp16_bf16_tf32_dst_fp32", "fp16_dst_fp16"],
    "GA100": ["bf16_dst_fp32", "fp16_dst_fp16", "fp16_dst_fp32", "tf32_dst_fp32"],
    "AD102": ["bf16_dst_fp32", "fp16_dst_fp16", "fp16_dst_fp32", "fp8", "tf32_dst_fp32"],
    "GH100": ["bf16_dst_fp32", "fp16", "fp8", "tf32_dst_fp32"],
    "GB100": ["bf16_dst_fp32", "fp16_dst_fp16", "fp16_dst_fp32", "fp4_fp6_fp8_dst_fp32", "tf32_dst_fp32"],
    "GB202": ["bf16_dst_fp32", "fp16_dst_fp16", "fp16_dst_fp32", "fp8_dst_fp16", "fp8_dst_fp32", "tf32_dst_fp32"],
}


class FakeCupti:
    """libcupti with the counters of a chip; a step's counts are what `counts` says. refusing: {function: status}."""

    def __init__(self, chip: str = "GH100") -> None:
        self.chip = chip.encode()
        self.names = [f"{PATH}{name}" for name in CHIPS[chip]] + [INSTRUCTIONS, CONSTANTS]
        self.counts: dict[str, float] = {}
        self.refusing: dict[str, int] = {}
        self.missing: set[str] = set()
        self.passes, self.submitted, self.dropped, self.ranges = 1, 0, 0, 1
        self.order: list[str] = []
        self.inside: list[str] = []
        self.keep: list[object] = []

    def __getattr__(self, function: str):
        if not function.startswith("cupti") or function in self.missing:
            raise AttributeError(function)
        if function == "cuptiGetResultString":
            return self._words

        def call(reference) -> int:
            block = reference._obj
            assert block.size == type(block).known_size()
            assert block.private is None
            self.order.append(function)
            status = self.refusing.get(function, 0)
            if status == 0:
                getattr(self, f"_{function}", lambda block: None)(block)
            return status

        return call

    def _words(self, status, reference) -> None:
        reference._obj.value = {35: b"CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"}.get(status, b"CUPTI_ERROR_OTHER")

    def _cuptiDeviceGetChipName(self, block) -> None:  # noqa: N802 # CUPTI's own name, as all below
        block.chip = self.chip

    def _cuptiProfilerHostInitialize(self, block) -> None:  # noqa: N802
        assert (block.kind, block.chip, block.availability) == (0, self.chip, None)
        block.host = 0x1000

    def _cuptiProfilerHostGetBaseMetrics(self, block) -> None:  # noqa: N802
        self.keep.append((ctypes.c_char_p * len(self.names))(*(name.encode() for name in self.names)))
        block.names = self.keep[-1]
        block.count = len(self.names)

    def _cuptiProfilerHostConfigAddMetrics(self, block) -> None:  # noqa: N802
        self.added = [block.names[i].decode() for i in range(block.count)]

    def _cuptiProfilerHostGetConfigImageSize(self, block) -> None:  # noqa: N802
        block.image_size = 64

    def _cuptiProfilerHostGetConfigImage(self, block) -> None:  # noqa: N802
        ctypes.memset(block.image, 7, block.image_size)

    def _cuptiProfilerHostGetNumOfPasses(self, block) -> None:  # noqa: N802
        assert ctypes.string_at(block.image, block.image_size) == b"\x07" * 64
        block.passes = self.passes

    def _cuptiRangeProfilerEnable(self, block) -> None:  # noqa: N802
        assert block.context == 0xC0
        block.profiler = 0x2000

    def _cuptiRangeProfilerGetCounterDataSize(self, block) -> None:  # noqa: N802
        assert (block.profiler, block.ranges, block.tree_nodes) == (0x2000, 1, 1)
        block.data_size = 128

    def _cuptiRangeProfilerSetConfig(self, block) -> None:  # noqa: N802
        assert (block.range_mode, block.replay_mode, block.image_size, block.data_size) == (2, 3, 64, 128)
        assert (block.nesting_levels, block.first_nesting_level, block.target_nesting_level) == (1, 1, 1)
        self.submitted = 0

    def _cuptiRangeProfilerPushRange(self, block) -> None:  # noqa: N802
        self.inside.append(block.name.decode())

    def _cuptiRangeProfilerPopRange(self, block) -> None:  # noqa: N802
        self.inside.pop()

    def _cuptiRangeProfilerStop(self, block) -> None:  # noqa: N802
        self.submitted += 1
        block.all_passes = int(self.submitted >= self.passes)

    def _cuptiRangeProfilerDecodeData(self, block) -> None:  # noqa: N802
        block.dropped = self.dropped

    def _cuptiRangeProfilerGetCounterDataInfo(self, block) -> None:  # noqa: N802
        block.ranges = self.ranges

    def _cuptiProfilerHostEvaluateToGpuValues(self, block) -> None:  # noqa: N802
        for index in range(block.count):
            block.values[index] = self.counts.get(block.names[index].decode(), 0.0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCupti:
    library = FakeCupti()
    monkeypatch.setattr(cupti_room, "_load", lambda folder: library)
    monkeypatch.setattr(cupti_room, "_current_context", lambda device: 0xC0)
    monkeypatch.setattr(cupti_room, "synchronize", lambda device: None)

    @contextmanager
    def ready_body(name, size, device):
        library.counts = {f"{PATH}fp16.sum": 2.0 * size**3}
        yield Body(name, lambda: None)
        library.counts = {}

    monkeypatch.setattr(counters, "ready_body", ready_body)
    return library


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


# which counters


@pytest.mark.parametrize(
    ("chip", "expected"),
    [
        ("GV100", {"fp16": 2}),
        ("TU102", {"fp16": 2}),
        ("GA100", {"fp16": 2, "bf16": 1, "tf32": 1}),
        ("AD102", {"fp16": 2, "bf16": 1, "tf32": 1, "fp8": 1}),
        ("GH100", {"fp16": 1, "bf16": 1, "tf32": 1, "fp8": 1}),
        ("GB100", {"fp16": 2, "bf16": 1, "tf32": 1, "fp8": 1}),
        ("GB202", {"fp16": 2, "bf16": 1, "tf32": 1, "fp8": 2}),
    ],
)
def test_counters_are_chosen_from_what_the_chip_has(chip, expected):
    names = [f"{PATH}{name}" for name in CHIPS[chip]]
    groups = metrics_for(names)
    assert {name: len(group) for name, group in groups.items()} == expected
    assert all(metric.removesuffix(".sum") in names for group in groups.values() for metric in group)


def test_turings_one_sum_of_three_types_is_fp16_because_it_has_no_other():
    names = [f"{PATH}{name}" for name in CHIPS["TU102"]]
    assert metrics_for(names)["fp16"] == [f"{PATH}fp16_bf16_tf32_dst_fp32.sum", f"{PATH}fp16_dst_fp16.sum"]


def test_the_pipes_instructions_come_with_the_constants_that_are_none():
    assert metrics_for([INSTRUCTIONS, CONSTANTS]) == {INSTRUCTIONS: [f"{INSTRUCTIONS}.sum", f"{CONSTANTS}.sum"]}
    assert metrics_for([INSTRUCTIONS]) == {INSTRUCTIONS: [f"{INSTRUCTIONS}.sum"]}
    assert metrics_for(["sm__cycles_active"]) == {}


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


# one step of an arm


def test_operations_are_by_source_type(fake):
    def step():
        fake.counts = {f"{PATH}fp16.sum": 3e9, f"{PATH}tf32_dst_fp32.sum": 1e9, f"{INSTRUCTIONS}.sum": 500.0}
        fake.counts[f"{CONSTANTS}.sum"] = 100.0

    found = count(step, CUDA)
    assert found["operations"] == {"fp16": 3e9, "bf16": 0.0, "tf32": 1e9, "fp8": 0.0}
    assert found["instructions"] == 400.0  # without those that load constants
    assert (found["chip"], found["passes"], found["reason"]) == ("GH100", 5, None)
    assert found["metrics"][f"{INSTRUCTIONS}.sum"] == 500.0


def test_counters_that_miscount_a_known_product_are_not_believed(fake, monkeypatch):
    @contextmanager
    def ready_body(name, size, device):
        fake.counts = {f"{PATH}fp16.sum": 1.02 * 2.0 * size**3}
        yield Body(name, lambda: None)

    monkeypatch.setattr(counters, "ready_body", ready_body)
    found = count(lambda: None, CUDA)
    assert found["operations"] is None
    assert found["reason"] == (
        f"the counters are not believed: {1.02 * 2 * KNOWN_SIZE**3:.4g} operations for a product that takes 1.374e+11"
    )


@pytest.mark.parametrize(
    ("function", "status", "remedy"),
    [
        ("cuptiRangeProfilerStart", 35, PERMIT),
        ("cuptiRangeProfilerEnable", 40, PERMIT),
        ("cuptiRangeProfilerEnable", 39, END_OTHERS),
        ("cuptiRangeProfilerEnable", 26, END_OTHERS),
        ("cuptiProfilerInitialize", 999, None),
        ("cuptiDeviceGetChipName", 2, None),
        ("cuptiProfilerHostInitialize", 46, None),
    ],
)
def test_a_refusal_names_the_call_its_code_and_what_would_permit_it(fake, function, status, remedy):
    fake.refusing = {function: status}
    found = count(lambda: None, CUDA)
    assert found["operations"] is None
    assert found["reason"].startswith(f"{function} returned {status} (CUPTI_ERROR_")
    assert (found["remedy"] or "").startswith(remedy or "")
    assert (found["remedy"] is None) == (remedy is None)


def test_a_refusal_names_what_the_device_does_not_support(fake):
    def supported(block):
        block.architecture, block.vgpu, block.wsl = 3, 2, 1

    fake._cuptiProfilerDeviceSupported = supported
    fake.refusing = {"cuptiRangeProfilerEnable": 33}
    assert count(lambda: None, CUDA)["reason"].endswith("; not supported here: vgpu, wsl")


def test_a_cupti_from_before_these_calls_is_a_reason(fake):
    fake.missing = {"cuptiRangeProfilerEnable"}
    assert count(lambda: None, CUDA)["reason"] == (
        "this CUPTI has no cuptiRangeProfilerEnable (CUDA 12.6 and later have)"
    )


def test_a_chip_without_such_counters_is_a_reason(fake):
    fake.names = ["sm__cycles_active"]
    assert count(lambda: None, CUDA)["reason"] == "GH100 has no counter of FP16 tensor-core operations"


def refusing(monkeypatch, *refused):
    """CUPTI refuses the counters with these among their metrics; the known product before them is counted."""
    real, calls = Cupti.count, []

    def counted(self, chip, metrics, step, device):
        calls.append(metrics)
        if len(calls) > 1 and set(metrics) & set(refused):
            raise CuptiRefusedError("cuptiProfilerHostConfigAddMetrics returned 17 (CUPTI_ERROR_OTHER)", 17)
        return real(self, chip, metrics, step, device)

    monkeypatch.setattr(Cupti, "count", counted)
    return count(lambda: None, CUDA)


def test_a_counter_that_is_refused_leaves_the_others(fake, monkeypatch):
    found = refusing(monkeypatch, f"{PATH}fp8.sum")
    assert found["operations"] == {"fp16": 0.0, "bf16": 0.0, "tf32": 0.0}
    assert found["reason"].startswith("fp8: cuptiProfilerHostConfigAddMetrics returned 17")
    assert found["instructions_reason"] is None


def test_every_refused_counter_is_told_and_the_pipes_instructions_apart(fake, monkeypatch):
    found = refusing(monkeypatch, f"{PATH}fp16.sum", f"{PATH}fp8.sum", f"{INSTRUCTIONS}.sum")
    why = "cuptiProfilerHostConfigAddMetrics returned 17 (CUPTI_ERROR_OTHER)"
    assert set(found["operations"]) == {"bf16", "tf32"}
    assert found["reason"] == f"fp16: {why}; fp8: {why}"
    assert (found["instructions"], found["instructions_reason"]) == (None, why)


def test_a_chip_without_a_count_of_instructions_says_so(fake):
    fake.names = [name for name in fake.names if not name.startswith(INSTRUCTIONS)]
    found = count(lambda: None, CUDA)
    assert (found["reason"], found["instructions_reason"]) == (None, "not there on GH100")


# the child


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\n"
        "def build_model(): return torch.nn.Linear(4, 1)\n"
        "def train_batches(): return [(torch.randn(8, 4), torch.randn(8, 1))]\n"
        "def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()\n"
    )
    return load_job(str(path))


def test_on_a_cpu_counters_need_a_gpu(job):
    found = counters_of_arm("fp16", job, FP16_AUTOCAST, 0, CPU)
    assert found == CounterEvidence("fp16", None, reason="needs a CUDA GPU; this run was on the CPU")


def test_a_job_given_as_an_object_cannot_be_counted(job):
    found = counters_of_arm("fp16", dataclasses.replace(job, target=""), FP16_AUTOCAST, 0, CUDA)
    assert (found.operations, found.reason) == (None, cannot_start_again(dataclasses.replace(job, target=""), CUDA))


def test_the_child_answers_with_a_reason_where_nothing_can_be_counted(job):
    if torch.cuda.is_available():
        pytest.skip("here it can")
    request = request_for(job, dataclasses.replace(FP16_AUTOCAST, autocast=None), 0, CPU, None)
    found = evidence_of("fp16", in_child("mpdiag.measure.counters:count_step", request, 120))
    assert found.operations is None
    assert found.reason.startswith(("CUPTI is not there: libcupti.so.", "cuptiProfilerInitialize returned "))


def test_without_the_library_that_is_the_reason(monkeypatch):
    def missing(name, mode=0):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cupti_room.ctypes, "CDLL", missing)
    with pytest.raises(CuptiRefusedError, match=r"^CUPTI is not there: libcupti\.so\.13: cannot open"):
        Cupti()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(None, "the process that measures it was killed by SIGSEGV"), "the process that measures it was killed"),
        (Reply(None, "the process that measures it took longer than 180 s"), "the process that measures it took"),
        (Reply(None), "the process that measures it gave no answer"),
    ],
)
def test_a_child_that_crashes_or_hangs_is_a_reason(reply, reason):
    found = evidence_of("fp16", reply)
    assert found.operations is None
    assert found.reason.startswith(reason)


def test_a_record_comes_back_from_json_equal(fake):
    record = CounterEvidence(arm="fp16", **count(lambda: None, CUDA))
    text = json.dumps(saved._plain(dataclasses.asdict(record)))
    assert saved._typed(CounterEvidence, json.loads(text)) == record


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
