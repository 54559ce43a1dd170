"""The parameter blocks of CUPTI's profiler host and range profiler calls, as its API reference describes them.

Every block begins with its own size and a null pointer. The size ends at the last field, without the padding that C
puts behind it, so that the library can tell which fields a caller knows.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int, c_size_t, c_uint8, c_uint16, c_uint32, c_void_p

RANGE_PROFILER = 0  # CUpti_ProfilerType
METRIC_COUNTER = 0  # CUpti_MetricType
USER_RANGE = 2  # CUpti_ProfilerRange: pushed and popped by us
USER_REPLAY = 3  # CUpti_ProfilerReplayMode: we run the step again for each pass
UNSUPPORTED, DISABLED = 1, 2  # CUpti_Profiler_Support_Level; 0 unknown, 3 supported
OBSTACLES = ("architecture", "sli", "vgpu", "confidential", "cmp", "wsl")
_NAMES = POINTER(c_char_p)


class Block(ctypes.Structure):
    """A parameter block; `Block(field=value)` fills in its size."""

    def __init__(self, **values: object) -> None:
        super().__init__(**values)
        self.size = type(self).known_size()

    @classmethod
    def known_size(cls) -> int:
        """Bytes up to the end of the last field."""
        name = cls._fields_[-1][0]
        place = getattr(cls, name)
        return int(place.offset + place.size)


def _block(name: str, *fields: tuple[str, type]) -> type[Block]:
    return type(name, (Block,), {"_fields_": [("size", c_size_t), ("private", c_void_p), *fields]})


_HOST = ("host", c_void_p)
_PROFILER = ("profiler", c_void_p)

ProfilerInitialize = _block("ProfilerInitialize")
DeviceGetChipName = _block("DeviceGetChipName", ("device_index", c_size_t), ("chip", c_char_p))
DeviceSupported = _block(
    "DeviceSupported",
    *[(name, c_int) for name in "device supported architecture sli vgpu confidential cmp wsl api".split()],
)

HostInitialize = _block("HostInitialize", ("kind", c_int), ("chip", c_char_p), ("availability", c_void_p), _HOST)
HostDeinitialize = _block("HostDeinitialize", _HOST)
HostGetSupportedChips = _block("HostGetSupportedChips", ("count", c_size_t), ("chips", _NAMES))
HostGetBaseMetrics = _block("HostGetBaseMetrics", _HOST, ("kind", c_int), ("names", _NAMES), ("count", c_size_t))
HostConfigAddMetrics = _block("HostConfigAddMetrics", _HOST, ("names", _NAMES), ("count", c_size_t))
HostGetConfigImageSize = _block("HostGetConfigImageSize", _HOST, ("image_size", c_size_t))
HostGetConfigImage = _block("HostGetConfigImage", _HOST, ("image_size", c_size_t), ("image", c_void_p))
HostGetNumOfPasses = _block("HostGetNumOfPasses", ("image_size", c_size_t), ("image", c_void_p), ("passes", c_size_t))
HostEvaluateToGpuValues = _block(
    "HostEvaluateToGpuValues",
    _HOST,
    ("data", c_void_p),
    ("data_size", c_size_t),
    ("range_index", c_size_t),
    ("names", _NAMES),
    ("count", c_size_t),
    ("values", POINTER(c_double)),
)

RangeEnable = _block("RangeEnable", ("context", c_void_p), _PROFILER)
RangeDisable = _block("RangeDisable", _PROFILER)
RangeGetCounterDataSize = _block(
    "RangeGetCounterDataSize",
    _PROFILER,
    ("names", _NAMES),
    ("count", c_size_t),
    ("ranges", c_size_t),
    ("tree_nodes", c_uint32),
    ("data_size", c_size_t),
)
RangeCounterDataImageInitialize = _block(
    "RangeCounterDataImageInitialize", _PROFILER, ("data_size", c_size_t), ("data", c_void_p)
)
RangeSetConfig = _block(
    "RangeSetConfig",
    _PROFILER,
    ("image_size", c_size_t),
    ("image", c_void_p),
    ("data_size", c_size_t),
    ("data", c_void_p),
    ("range_mode", c_int),
    ("replay_mode", c_int),
    ("ranges_per_pass", c_size_t),
    ("nesting_levels", c_uint16),
    ("first_nesting_level", c_uint16),
    ("pass_index", c_size_t),
    ("target_nesting_level", c_uint16),
)
RangeStart = _block("RangeStart", _PROFILER)
RangeStop = _block(
    "RangeStop", _PROFILER, ("pass_index", c_size_t), ("nesting_level", c_size_t), ("all_passes", c_uint8)
)
RangePush = _block("RangePush", _PROFILER, ("name", c_char_p))
RangePop = _block("RangePop", _PROFILER)
RangeDecodeData = _block("RangeDecodeData", _PROFILER, ("dropped", c_size_t))
RangeGetCounterDataInfo = _block(
    "RangeGetCounterDataInfo", ("data", c_void_p), ("data_size", c_size_t), ("ranges", c_size_t)
)
