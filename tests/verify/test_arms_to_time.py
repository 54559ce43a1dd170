"""What is timed on a GPU: what could be had beside the arms that were trained, and a sentence for what could not."""

import pytest
import torch
from torch import nn

from arm_samples import SCALE
from mpdiag.plan import IslandPlan
from mpdiag.verify.arms import arms_for, tf32_arm, timed_arms

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PLAN = IslandPlan(("fc",), True, True, 12, "dynamic", 2000, 3, 0.5, False)
DENSE, IMAGES = nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
TRAINED = ["fp32", "fp16", "bf16"]


def timed(model, plan=None, device=CPU):
    return timed_arms(arms_for(SCALE, CPU, plan)[0], model, device)


@pytest.fixture
def capability(monkeypatch):
    def having(found):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)

    return having


def test_tf32_and_a_compiled_fp16_are_timed_beside_what_was_trained():
    arms, left_out = timed(DENSE)
    assert list(arms) == [*TRAINED, "tf32", "fp16-compile"]
    assert (arms["tf32"].tf32, arms["fp16-compile"].compiled, left_out) == (True, True, [])


def test_images_are_timed_in_channels_last_too():
    arms, left_out = timed(IMAGES)
    assert list(arms) == [*TRAINED, "tf32", "fp16-channels-last", "fp16-compile"]
    assert (arms["fp16-channels-last"].channels_last, arms["fp16-channels-last"].compiled) == (True, False)
    assert left_out == []


@pytest.mark.parametrize(
    ("model", "names"),
    [(DENSE, ["fp16-compile"]), (IMAGES, ["fp16-compile", "fp16-channels-last"])],
    ids=["dense", "images"],
)
def test_beside_fp32_islands_neither_is_timed_and_each_says_why(model, names):
    arms, left_out = timed(model, PLAN)
    assert list(arms) == ["fp32", "fp16-plan", "fp16", "bf16", "tf32"]
    assert sorted(line.partition(":")[0] for line in left_out) == sorted(f"arm {name}" for name in names)
    assert all(": not timed, " in line and "fp16-plan" in line for line in left_out)


@pytest.mark.parametrize(("found", "has"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tf32_is_timed_only_where_the_gpu_has_it(found, has, capability):
    capability(found)
    arms, left_out = timed(DENSE, device=CUDA)
    assert ("tf32" in arms) is has
    wanted = "arm tf32: not timed, this GPU's tensor cores have no TF32 (Ampere and later have)"
    assert left_out == ([] if has else [wanted])


def test_the_tf32_arm_is_one_or_a_reason(capability):
    assert tf32_arm(CPU)[0].name == "tf32"
    capability((7, 5))
    assert tf32_arm(CUDA) == (None, "this GPU's tensor cores have no TF32 (Ampere and later have)")
