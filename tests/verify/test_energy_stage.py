"""How many windows of energy fit: an interval for FP32 and FP16 goes before BF16, and before longer windows."""

import pytest

from mpdiag.costs.gpu import GpuSharing
from mpdiag.costs.tensor_cores import Calibration
from mpdiag.measure.energy import ArmWindows, energy_from, gpm_from
from mpdiag.measure.sharing import REST_SECONDS
from mpdiag.verify.energy_stage import plan_windows, with_left_out

ARMS = ("fp32", "fp16", "bf16")


def planned(room, ready=0.0, later=0.0, names=ARMS):
    found = plan_windows(names, dict.fromkeys(names, ready), room, later)
    return found.names, found.rounds, found.seconds


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (82.1, (ARMS, 5, 5.0)),  # 2.5 s of rest and 5 x 3 x (5 + 0.3) s
        (81.9, (ARMS, 3, 5.0)),
        (50.3, (ARMS, 3, 5.0)),
        (50.1, (ARMS, 3, 2.1)),
        (24.2, (ARMS, 3, 2.1)),
        (24.0, (("fp32", "fp16"), 3, 2.1)),
        (17.0, (("fp32", "fp16"), 3, 2.1)),
        (16.8, (ARMS, 1, 2.1)),
        (9.8, (ARMS, 1, 2.1)),
        (9.6, (("fp32", "fp16"), 1, 2.1)),
        (0.0, (("fp32", "fp16"), 1, 2.1)),
    ],
)
def test_what_fits_into_a_room_of_so_many_seconds(room, expected):
    assert planned(room) == expected


def test_building_the_arms_in_every_round_counts():
    assert planned(49.0, ready=1.0) == (ARMS, 3, 2.1)
    assert planned(49.0, ready=4.0) == (("fp32", "fp16"), 3, 2.1)
    assert planned(49.0, ready=9.0) == (ARMS, 1, 2.1)


def test_what_comes_later_goes_before_longer_windows_but_not_before_three():
    assert planned(90.0, later=60.0) == (ARMS, 3, 2.1)
    assert planned(111.0, later=60.0) == (ARMS, 3, 5.0)
    assert planned(82.5, later=60.0) == (ARMS, 5, 5.0)  # it would leave room for one window only


def test_what_a_plan_needs_is_rest_and_all_windows_with_their_lead_in():
    found = plan_windows(ARMS, {"fp16": 2.0}, 0.0)
    assert found.needs_seconds == pytest.approx(REST_SECONDS + 2 * 2.4 + 2.0)


def test_an_arm_that_the_plan_left_out_has_a_record_of_energy_and_of_pipes_that_says_so():
    run = ArmWindows({"fp32": [], "fp16": []}, {"fp32": 8, "fp16": 8}, GpuSharing(0, 0.0, False, 2.5, "rule"), {})
    found = with_left_out(run, ARMS)
    *others, use = energy_from(found)
    assert (use.arm, use.joules_per_sample, use.windows, use.seconds) == ("bf16", None, 0, 0.0)
    assert use.reason == "left out, so that the other arms have their windows within the time budget"
    pipes = gpm_from(found, Calibration((), True, 0.04, 0.02, 0.86, "rule"))[-1]
    assert (pipes.arm, pipes.used, pipes.reason) == ("bf16", None, use.reason)
    assert [each.reason for each in others] == ["no window was read"] * 2
    assert run.failures == {}


def test_where_no_arm_was_left_out_the_windows_are_as_they_were():
    run = ArmWindows({name: [] for name in ARMS}, dict.fromkeys(ARMS, 8), GpuSharing(0, 0.0, False, 2.5, "rule"), {})
    assert with_left_out(run, ARMS) == run


def test_the_control_is_left_out_before_bf16():
    arms = (*ARMS, "fp16-pure")
    assert planned(31.4, names=arms) == (arms, 3, 2.1)
    assert planned(31.2, names=arms) == (ARMS, 3, 2.1)
    assert planned(24.0, names=arms) == (("fp32", "fp16"), 3, 2.1)
