"""A verification from start to record: out of memory halves the batch for every arm, and what was cut is said once."""

import pytest
import torch

from mpdiag.advice import advise
from mpdiag.api import ScanOptions, scan
from mpdiag.errors import UserCodeError
from mpdiag.target import load_job
from mpdiag.verify.run import VerificationRun

MODEL = """
import torch
ROOM = {room}
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(4)]
def compute_loss(model, batch):
    if len(batch[0]) > ROOM:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


def run_with(room, tmp_path):
    """A verification of a job whose batches of 16 are too large, advised as if they were not."""
    path = tmp_path / "model.py"
    path.write_text(MODEL.format(room=16))
    advice = advise(scan(str(path), ScanOptions(steps=2, verify=False, device="cpu")).capture)
    path.write_text(MODEL.format(room=room))
    made = VerificationRun(load_job(str(path)), advice, torch.device("cpu"))
    made.run(0, 5, 2, 60.0, lambda line: None)
    return made


@pytest.mark.parametrize(("room", "share"), [(8, 2), (4, 4), (1, 16)])
def test_out_of_memory_halves_the_batch_for_every_arm_and_says_so_once(room, share, tmp_path):
    found = run_with(room, tmp_path).record()
    told = [line for line in found.cut if "of the batch" in line]
    assert len(told) == 1
    assert told[0].startswith(f"every arm trains on 1/{share} of the batch")
    assert "out of memory" in told[0]
    assert {t.seed for t in found.trials if t.arm == "fp32"} == {0, 1}
    assert all(t.error is None and t.steps == 5 for t in found.trials)
    assert len(found.cut) == len(set(found.cut))


def test_a_batch_that_fits_is_left_whole(tmp_path):
    assert not any("of the batch" in line for line in run_with(16, tmp_path).record().cut)


def test_a_single_sample_that_does_not_fit_is_the_jobs_own_error(tmp_path):
    with pytest.raises(UserCodeError) as raised:
        run_with(0, tmp_path)
    assert raised.value.slug == "out-of-memory"


def test_out_of_memory_in_the_middle_of_an_arm_begins_all_arms_again(tmp_path, monkeypatch):
    from mpdiag.verify import run as room

    real, calls = room.train_arm, []

    def once(job, arm, start, steps, device):
        calls.append((arm.name, len(start.batches[0][0])))
        if arm.name == "bf16" and len(start.batches[0][0]) == 16:
            raise UserCodeError("out-of-memory", "OutOfMemoryError: CUDA out of memory", "", "")
        return real(job, arm, start, steps, device)

    monkeypatch.setattr(room, "train_arm", once)
    found = run_with(16, tmp_path).record()
    assert {size for _, size in calls[calls.index(("bf16", 16)) + 1 :]} == {8}
    assert len([t for t in found.trials if t.arm == "fp32"]) == 2
