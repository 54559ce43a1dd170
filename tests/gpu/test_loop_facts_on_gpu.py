"""The facts of a training loop are the same on a GPU."""

from __future__ import annotations

import pytest
import torch

from mpdiag.capture.loop_facts import observe_loop
from planted_tables import HEALTHY, PLANTS

pytestmark = pytest.mark.gpu
LOOPS = sorted(name for name in PLANTS if name.startswith("MP5"))


@pytest.mark.parametrize("name", LOOPS)
def test_a_planted_loop_has_the_same_facts_on_a_gpu(name):
    job = PLANTS[name].build()
    start = job.start(0, 1)
    there, there_largest = observe_loop(job, start, torch.device("cuda"))
    here, here_largest = observe_loop(job, start, torch.device("cpu"))
    assert [(e.what, e.source) for e in there.events] == [(e.what, e.source) for e in here.events]
    assert (there.trainable, there.layers, there.half_norms) == (here.trainable, here.layers, here.half_norms)
    assert [(g.kind, g.dtype, g.state) for g in there.groups] == [(g.kind, g.dtype, g.state) for g in here.groups]
    assert there_largest == here_largest


def test_a_fused_optimizer_is_seen_as_one_on_a_gpu():
    job = HEALTHY["a_fused_optimizer"].build()
    facts, _ = observe_loop(job, job.start(0, 1), torch.device("cuda"))
    assert facts.groups[0].fused
    assert facts.events_reason is None
