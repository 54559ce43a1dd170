"""What the tests of the counters share: a CUPTI that needs no GPU."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from cupti_samples import PATH, FakeCupti
from mpdiag.device import cupti as cupti_room
from mpdiag.device.bodies import Body
from mpdiag.measure import counters


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
