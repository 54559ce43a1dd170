"""Counters that are read in a child process: where none can be, the reason is told."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cupti_samples import CPU, CUDA
from mpdiag.costs.tensor_cores import CounterEvidence
from mpdiag.measure.again import cannot_start_again, request_for
from mpdiag.measure.child import Reply, in_child
from mpdiag.measure.counters import (
    counters_of_arm,
    evidence_of,
)
from mpdiag.target import load_job
from mpdiag.training.precision import FP16_AUTOCAST

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
