"""The gain of channels_last is what its own arm measured, and never what a trace would guess."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mpdiag.costs.gpu import GpuSharing
from mpdiag.costs.kernels import ArmKernels, LayerUse, WhyNot
from mpdiag.costs.record import Costs
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.verify.channels_last import told_by_its_arm

GUESS = WhyNot("nchw-transposes", "layout changes take 13%", "channels_last; then measure again", 0.04, "bound")
CASTS = WhyNot("casts", "casts take 7%", "one region", 0.02, "bound")
LAYER = LayerUse("conv", "Conv2d", 0.1, 0.2, 0.3, "float16", "yes", why_not=(GUESS, CASTS))
FP16 = ArmKernels("fp16", "FP16", None, (LAYER,), (CASTS, GUESS))
QUIET = (1.0, 1.001, 0.999, 1.0005, 0.9995)


def costs(ratio: float, control: tuple[float, ...] = QUIET, other: str = "fp16-channels-last") -> Costs:
    """FP16 takes 3 ms, the arm with channels_last `ratio` of that."""

    def arm(name: str, middle: float, wobble: tuple[float, ...] = QUIET) -> ArmTime:
        return ArmTime(name, name, middle, (middle, middle), middle, tuple(middle * w for w in wobble), 100, 0)

    half = arm("fp16", 3.0, QUIET[::-1])
    arms = (arm("fp32", 2.0), half, arm(other, 3.0 * ratio))
    return replace(Costs.absent("not asked"), timing=Timing(arms, arm("again", 2.0, control), 32, 5, True, 10.0))


def test_a_faster_arm_gives_its_gain_of_the_step():
    found = told_by_its_arm(FP16, costs(0.8))
    casts, layout = found.findings
    assert casts == CASTS
    assert (layout.gain_ms, layout.gain_from) == (pytest.approx(0.6, rel=0.01), "arm")
    assert layout.remedy == GUESS.remedy


def test_an_arm_that_is_as_fast_shows_no_gain():
    (_, layout) = told_by_its_arm(FP16, costs(1.001)).findings
    assert layout.gain_ms is None
    assert layout.gain_from.startswith("not shown: the arm fp16-channels-last takes x1.001 of this arm's step (")


def test_a_slower_arm_is_told_and_the_remedy_turns():
    (_, layout) = told_by_its_arm(FP16, costs(1.3)).findings
    assert layout.gain_ms is None
    assert layout.gain_from.startswith("none: the arm fp16-channels-last takes x1.300")
    assert layout.remedy == "leave the layout as it is: channels_last was slower here"


def test_on_a_noisy_machine_nothing_is_decided():
    (_, layout) = told_by_its_arm(FP16, costs(0.8, (1.0, 1.4, 0.8, 1.3, 0.9))).findings
    assert layout.gain_ms is None
    assert layout.gain_from.startswith("undecided: ")


def test_beside_other_work_on_the_gpu_nothing_is_decided():
    busy = replace(costs(0.8), sharing=GpuSharing(1, 0.9, True, 0.5, "rule", "the GPU was busy with other work"))
    (_, layout) = told_by_its_arm(FP16, busy).findings
    assert layout.gain_ms is None
    assert layout.gain_from.startswith("undecided: the arm fp16-channels-last takes x0.800")
    assert layout.gain_from.endswith(", and the GPU was busy with other work")


def test_a_layer_has_no_part_of_the_steps_gain():
    (layer,) = told_by_its_arm(FP16, costs(0.8)).layers or ()
    layout, casts = layer.why_not
    assert (layout.gain_ms, layout.gain_from) == (
        None,
        "not told for one layer: the arm fp16-channels-last was timed as a whole",
    )
    assert casts == CASTS


@pytest.mark.parametrize("arm", ["bf16", "fp16-plan", "fp32"])
def test_other_arms_keep_the_bound_of_their_trace(arm):
    kernels = replace(FP16, arm=arm)
    assert told_by_its_arm(kernels, costs(0.8)) == kernels


def test_without_that_arm_the_bound_stays():
    assert told_by_its_arm(FP16, Costs.absent("no GPU")) == FP16
    assert told_by_its_arm(FP16, costs(0.8, other="fp16-compile")) == FP16
