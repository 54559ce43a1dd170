"""What torch.profiler writes down is read for bodies that are timed alone, whatever fails and whatever the locale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpdiag.measure.profiled import exported, kernel_ms
from mpdiag.measure.trace_events import STEP
from trace_samples import Written

# --- bodies alone


def test_a_body_that_fails_while_it_is_timed_has_no_time_and_leaves_the_others_theirs(monkeypatch):
    def grafted(profiler):
        """Each range a kernel, the first of 10 us, the next of 20 us and so on."""
        document, written = exported(profiler), Written()
        starts = sorted(e["ts"] for e in document["traceEvents"] if e.get("name") == STEP)
        for i, start in enumerate(starts):
            written.kernel("k", start + 0.01, start + 1, 10.0 * (i + 1), None)
        return {**document, "traceEvents": document["traceEvents"] + written.events[2:]}

    def body(fails_at: int | None):
        calls = iter(range(100))

        def call():
            if next(calls) == fails_at:
                raise RuntimeError("CUDA error: an illegal instruction was encountered")

        return lambda: call

    monkeypatch.setattr("mpdiag.measure.profiled.exported", grafted)
    found = kernel_ms([body(None), body(0), body(3), body(None)], calls=2)
    assert found == [pytest.approx(0.005), None, None, pytest.approx(0.015)]


def test_a_record_of_the_profiler_that_cannot_be_read_leaves_every_body_without_a_time(monkeypatch):
    def broken(profiler):
        return json.loads('{"traceEvents": [')

    monkeypatch.setattr("mpdiag.measure.profiled.exported", broken)
    assert kernel_ms([lambda: lambda: None] * 2, calls=2) == [None, None]


def test_a_trace_is_read_as_utf_8_whatever_the_locale_says(monkeypatch):
    class Profiler:
        def export_chrome_trace(self, path):
            Path(path).write_bytes('{"name": "Schicht/\u00e4"}'.encode())

    read = Path.read_text

    def in_ascii(path, encoding=None, errors=None):
        return read(path, encoding=encoding or "ascii", errors=errors)

    monkeypatch.setattr(Path, "read_text", in_ascii)
    assert exported(Profiler()) == {"name": "Schicht/\u00e4"}
