"""A libcupti that is none: it has the counters of a chip and counts what a test says."""

from __future__ import annotations

import ctypes

import torch

from mpdiag.measure.counters import (
    CONSTANTS,
    INSTRUCTIONS,
)

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
