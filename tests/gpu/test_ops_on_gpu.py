"""The second pass on a GPU: the types that emulation gives on a CPU, the same values, the same places."""

from pathlib import Path

import pytest
import torch

from mpdiag.capture.op_scan import observe_operations
from mpdiag.operations import OpRole
from mpdiag.target import load_job

pytestmark = pytest.mark.gpu

TARGETS = Path(__file__).resolve().parents[1] / "targets"
CPU = torch.device("cpu")
ALIKE = ["attention", "checkpointed", "resnet", "encoder", "vae", "tied", "in_place"]  # the same operators on both


def _tables(name, device):
    job = load_job(str(TARGETS / f"{name}.py"))
    found = observe_operations(job, job.start(0, 1), device)
    assert found.reason is None
    return {(t.module, t.op, t.role, t.direction, t.source, t.argument): t for t in found.tables}


@pytest.mark.parametrize("name", ALIKE)
def test_the_types_seen_on_a_gpu_are_those_that_emulation_gives(name, gpu):
    here, there = _tables(name, gpu), _tables(name, CPU)
    shared = [key for key in here if key in there and key[3] == "forward"]
    assert len(shared) > 2
    differing = {key: (here[key].amp_dtype, there[key].amp_dtype) for key in shared}
    assert {key: pair for key, pair in differing.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize("name", ["attention", "resnet", "vae", "tied"])  # no dropout: a GPU draws other numbers
def test_forward_values_are_those_of_a_cpu_up_to_rounding(name, gpu):
    here, there = _tables(name, gpu), _tables(name, CPU)
    for key in (k for k in here if k in there and k[3] == "forward"):
        if there[key].abs_max is not None:
            assert here[key].abs_max == pytest.approx(there[key].abs_max, rel=1e-2, abs=1e-4), key


@pytest.mark.parametrize("name", [name for name in ALIKE if name != "resnet"])  # its modules are called by ours
def test_backward_operators_are_seen_from_autograds_own_threads_with_module_and_line(name, gpu):
    back = [t for key, t in _tables(name, gpu).items() if key[3] == "backward"]
    assert len(back) > 2
    assert all(t.source is not None for t in back)
    assert all(t.histogram.total == t.elements > 0 for t in back)


def test_logits_inside_a_fused_kernel_are_seen(gpu):
    logits = [t for key, t in _tables("encoder", gpu).items() if key[2] is OpRole.LOGITS]
    assert logits
    assert all(t.elements > 0 for t in logits)
