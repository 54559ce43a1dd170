"""A Chrome trace of torch.profiler as kernels that know their operator, module, phase and step. No torch here.

Each CPU thread's operators and marked ranges nest by time. A kernel belongs to the operator of its External id, else
to the innermost range around the call that launched it (they share a correlation id). A backward operator belongs to
the module of the forward operator with the sequence number of its autograd node.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpdiag.costs.kernels import SCALERS_READ

STEP = "mpdiag.step"  # the range around one traced step
MODULE = "mpdiag.module|"  # before a module's qualified name
_NODE = "autograd::engine::evaluate_function"  # the engine running one autograd node
_COPIES = ("gpu_memcpy", "gpu_memset")
_CALLS = ("cuda_runtime", "cuda_driver")
_UNSCALE = "aten::_amp_foreach_non_finite_check_and_unscale_"  # what a GradScaler does before it reads a number

# record_function's words for the types of inputs -> torch's
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "c10::Half": "float16",
    "c10::BFloat16": "bfloat16",
    "c10::Float8_e4m3fn": "float8_e4m3fn",
    "c10::Float8_e5m2": "float8_e5m2",
    "c10::complex<float>": "complex64",
    "c10::complex<double>": "complex128",
}


@dataclass(frozen=True)
class TracedOp:
    """The operator that launched a kernel. dims, strides: of its inputs, () for what is no tensor.

    dtype: of its first floating-point input, or of the nearest enclosing operator's that has one.
    """

    name: str
    dims: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    dtype: str | None


@dataclass(frozen=True)
class TracedKernel:
    """One kernel or copy on the GPU. module: None outside every module, "" in the model's own code.

    phase: "forward", "backward", "optimizer" or "other". copy: a memcpy or memset, which is no kernel.
    """

    name: str
    start_us: float
    duration_us: float
    step: int
    op: TracedOp | None
    module: str | None
    phase: str
    copy: bool = False


@dataclass(frozen=True)
class TracedWait:
    """One call in which the host waits for the GPU; its fields as of a HostWait. duration_us: of the call."""

    call: str
    start_us: float
    duration_us: float
    step: int
    op: str | None
    module: str | None


@dataclass(frozen=True)
class Trace:
    """The kernels of `steps` whole steps, and the host's waits. span_us: from the first step's start until both the
    host and the GPU were done, with the profiler's own cost.
    """

    kernels: tuple[TracedKernel, ...]
    steps: int
    span_us: float
    waits: tuple[TracedWait, ...] = ()


class _Range:
    """An operator or marked range of one CPU thread, inside its parent."""

    __slots__ = ("args", "end", "marked", "name", "parent", "start", "tid")

    def __init__(self, event: Mapping[str, Any]) -> None:
        self.name: str = event["name"]
        self.start = float(event["ts"])
        self.end = self.start + float(event.get("dur", 0))
        self.tid = event.get("tid")
        self.args: Mapping[str, Any] = event.get("args") or {}
        self.marked = event["cat"] == "user_annotation"
        self.parent: _Range | None = None

    def upward(self) -> Iterator[_Range]:
        here: _Range | None = self
        while here is not None:
            yield here
            here = here.parent


def read_trace(document: Mapping[str, Any]) -> Trace:
    """The kernels of every complete step in a trace as `export_chrome_trace` writes it (its JSON, parsed)."""
    events = [e for e in document["traceEvents"] if e.get("ph") == "X" and "ts" in e]
    ranges = [_Range(e) for e in events if e.get("cat") in ("cpu_op", "user_annotation")]
    threads = _nest(ranges)
    steps = sorted((r for r in ranges if r.name == STEP), key=lambda r: r.start)
    main = steps[0].tid if steps else None
    by_id = {r.args["External id"]: r for r in ranges if r.args.get("External id")}
    launches = {
        e["args"]["correlation"]: e for e in events if e.get("cat") in _CALLS and "correlation" in (e.get("args") or {})
    }
    homes = _Homes(ranges, main)
    kernels, waits = [], []

    def step_at(time_us: float | None) -> int | None:
        return next((i for i, s in enumerate(steps) if time_us is not None and s.start <= time_us <= s.end), None)

    copies = {(e.get("args") or {}).get("correlation"): e["name"] for e in events if e.get("cat") == "gpu_memcpy"}
    for event in events:
        args = event.get("args") or {}
        if event.get("cat") not in _CALLS or not _waits(event["name"], copies.get(args.get("correlation"))):
            continue
        step = step_at(float(event["ts"]))
        if step is not None:
            home = by_id.get(args.get("External id")) or _around(event, threads)
            op = _reader(home, threads, steps[step])
            at, lasted = float(event["ts"]), float(event.get("dur", 0))
            waits.append(TracedWait(event["name"], at, lasted, step, op, homes.of(home)[0]))
    for event in events:
        if event.get("cat") not in ("kernel", *_COPIES):
            continue
        args = event.get("args") or {}
        launch = launches.get(args.get("correlation"))
        home = by_id.get(args.get("External id")) or _around(launch, threads)
        began = float(launch["ts"]) if launch else home.start if home else None
        step = step_at(began)
        if step is None:
            continue  # launched before the first step: what the profiler's start found still running
        module, phase = homes.of(home)
        copy = event["cat"] in _COPIES
        kernels.append(
            TracedKernel(
                event["name"], float(event["ts"]), float(event.get("dur", 0)), step, _op(home), module, phase, copy
            )
        )
    ends = [s.end for s in steps] + [k.start_us + k.duration_us for k in kernels]
    return Trace(tuple(kernels), len(steps), max(ends) - steps[0].start if steps else 0.0, tuple(waits))


def _waits(call: str, copy: str | None) -> bool:
    """Whether a call of the CUDA API returns only when the GPU is done. copy: what it copies, as the trace names it.

    A copy into pageable memory is not asynchronous, whatever its name says (CUDA's API synchronization behaviour).
    """
    if call.endswith("Synchronize"):
        return True
    if not call.startswith(("cudaMemcpy", "cuMemcpy")):
        return False
    return "Async" not in call or (copy is not None and "DtoH" in copy and "Pageable" in copy)


def _reader(home: _Range | None, threads: Mapping[Any, Sequence[_Range]], step: _Range) -> str | None:
    """What reads a number of the GPU's: the outermost operator around the call, below any node of the engine."""
    outermost = None
    for each in home.upward() if home else ():
        if each.marked or each.name.startswith(_NODE):
            break
        outermost = each
    if outermost is None or outermost.name != "aten::item":
        return outermost.name if outermost else None
    # a GradScaler reads its number after unscaling and right before it lets the optimizer step
    thread = threads.get(outermost.tid, ())
    unscaled = any(r.name == _UNSCALE and step.start <= r.start < outermost.start for r in thread)
    after = next((r.name for r in thread if r.start >= outermost.end), "")
    return SCALERS_READ if unscaled and after.startswith("Optimizer.") else outermost.name


def _nest(ranges: Iterable[_Range]) -> dict[Any, list[_Range]]:
    """The ranges of each thread by start; gives each its parent."""
    threads: defaultdict[Any, list[_Range]] = defaultdict(list)
    for each in ranges:
        threads[each.tid].append(each)
    for thread in threads.values():
        thread.sort(key=lambda r: (r.start, -r.end))
        open_ranges: list[_Range] = []
        for each in thread:
            while open_ranges and open_ranges[-1].end <= each.start:
                open_ranges.pop()
            each.parent = open_ranges[-1] if open_ranges else None
            open_ranges.append(each)
    return threads


def _around(launch: Mapping[str, Any] | None, threads: Mapping[Any, Sequence[_Range]]) -> _Range | None:
    """The innermost range of its thread around the call that launched a kernel."""
    if launch is None:
        return None
    at = float(launch["ts"])
    thread = threads.get(launch.get("tid"), ())
    before = bisect_right(thread, at, key=lambda r: r.start)
    innermost = thread[before - 1] if before else None  # of nested ranges the last to start is the innermost
    return next((r for r in innermost.upward() if r.end >= at), None) if innermost else None


class _Homes:
    """Which module and phase an operator belongs to."""

    def __init__(self, ranges: Iterable[_Range], main: Any) -> None:
        self._main = main
        self._forward: dict[tuple[Any, int], _Range] = {}
        threads = set()
        for each in sorted(ranges, key=lambda r: r.start):
            number = each.args.get("Sequence number")
            if number is None:
                continue
            if each.args.get("Fwd thread id"):
                threads.add(each.args["Fwd thread id"])
            else:  # several operators see one number before a node takes it: the last of them is the one that does
                self._forward[each.tid, number] = each
        self._first = min(threads, default=None)  # the engine counts threads from the one that began, the main one

    def of(self, home: _Range | None) -> tuple[str | None, str]:
        """(module, phase) of an operator."""
        if home is None:
            return None, "other"
        path = list(home.upward())
        if home.name.startswith("aten::_amp_") or any(r.name.startswith("Optimizer.") for r in path):
            return None, "optimizer"  # a GradScaler's unscaling and updating, too
        node = next((r for r in path if r.name.startswith(_NODE)), None)
        mark = next((r for r in path if r.name.startswith(MODULE)), None)
        phase = "backward" if node is not None else "forward" if home.tid == self._main else "other"
        # a mark inside a node: checkpointing computes a forward again
        if mark is not None and (node is None or mark.start >= node.start):
            return mark.name.removeprefix(MODULE), phase
        forward = None if node is None else self._forward_of(node, home)
        return (None if forward is None else self.of(forward)[0]), phase

    def _forward_of(self, node: _Range, home: _Range) -> _Range | None:
        number = node.args.get("Sequence number")
        if number is None:  # accumulating a gradient into a parameter
            return None
        first = node.args.get("Fwd thread id") == self._first
        threads = (self._main, node.tid) if first else (node.tid, self._main)
        found = next((self._forward[t, number] for t in threads if (t, number) in self._forward), None)
        return found if found is not None and found.start < home.start else None


def _op(home: _Range | None) -> TracedOp | None:
    if home is None or home.marked:
        return None
    types = tuple(_DTYPES.get(t, t) for t in _flat(home.args.get("Input type")))
    dtype = None
    for each in home.upward():
        words = _flat(each.args.get("Input type"))
        dtype = next((_DTYPES[w] for w in words if w in _DTYPES), None)
        if dtype or each.name.startswith(_NODE):
            break
    return TracedOp(
        home.name, _shapes(home.args.get("Input Dims")), _shapes(home.args.get("Input Strides")), types, dtype
    )


def _flat(words: Any) -> list[str]:
    return [w for w in words if isinstance(w, str)] if isinstance(words, list) else []


def _shapes(lists: Any) -> tuple[tuple[int, ...], ...]:
    """Each input's dimensions; () for a scalar, for what is no tensor, and for a list of tensors."""
    if not isinstance(lists, list):
        return ()
    return tuple(tuple(s) if isinstance(s, list) and all(isinstance(n, int) for n in s) else () for s in lists)
