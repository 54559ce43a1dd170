"""MP203's remedy: what makes the gradients smaller, by what is known of the loss and of what it compares."""

from __future__ import annotations

from typing import Any

import pytest

from capture_samples import ACTIVATION_GRADIENT, only, table
from mpdiag.diagnosis import Finding
from mpdiag.loop import LoopFacts

OVER = table("head", ACTIVATION_GRADIENT, {16: 1}, 70000.0)
SUM = "use a mean instead of a sum in the loss"
MEAN = "the loss is a mean already: "


def told(reduction: str | None = None, targets: float | None = None, inputs: float | None = 3.0) -> Finding:
    loop = LoopFacts({}, loss_reduction=reduction, target_abs_max=targets)
    more: dict[str, Any] = {"loop": loop, "input_abs_max": inputs}
    return only("MP203", OVER, **more)


@pytest.mark.parametrize(
    ("reduction", "targets", "inputs", "remedy"),
    [
        ("sum", 2.0, 3.0, SUM),
        ("sum", 5e3, 3.0, f"{SUM} and standardise the targets (they reach 5,000)"),
        ("mean", 5e3, 3.0, f"{MEAN}standardise the targets (they reach 5,000)"),
        ("mean", None, 27655.0, f"{MEAN}standardise the inputs (they reach 27,655)"),
        ("mean", 2.0, 3.0, f"{MEAN}normalise the activations that the gradient comes from"),
        ("mean", 999.0, 999.0, f"{MEAN}normalise the activations that the gradient comes from"),
        (None, 5e3, 2e3, "standardise the targets (they reach 5,000) and the inputs (they reach 2,000), and if the "
         "loss is a sum use a mean"),
        (None, None, None, "if the loss is a sum use a mean, if it is a mean already standardise targets and inputs"),
    ],
)  # fmt: skip
def test_the_remedy_follows_what_is_known(reduction, targets, inputs, remedy):
    assert told(reduction, targets, inputs).remedy == f"{remedy}, or train in BF16"


def test_a_mean_is_never_told_to_become_one():
    for targets, inputs in ((None, None), (1e6, 1e6), (2.0, 2.0)):
        assert "instead of a sum" not in told("mean", targets, inputs).remedy
        assert "reduction='mean'" not in (told("mean", targets, inputs).snippet or "")


@pytest.mark.parametrize(("targets", "says"), [(65519.0, False), (65520.0, True), (666112.0, True)])
def test_targets_that_fp16_does_not_have_are_told_as_that(targets, says):
    beyond = ", beyond FP16's 65504: an output that has learnt them overflows)"
    assert (beyond in told("mean", targets).remedy) is says


def test_what_is_known_stands_in_the_evidence_and_nothing_else():
    known = told("mean", 5e3).evidence
    assert (known["loss_reduction"], known["target_abs_max"]) == ("mean", 5e3)
    assert set(told().evidence) == {"abs_max", "limit", "tensors"}
    assert set(only("MP203", OVER).evidence) == {"abs_max", "limit", "tensors"}, "a capture without the loop's facts"
