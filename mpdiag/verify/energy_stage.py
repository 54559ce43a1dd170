"""How many windows of energy fit into what is left of the time budget, how long they are and of which arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mpdiag.arm_names import BF16, FP16_PURE
from mpdiag.device.block import LEAD_IN_SECONDS
from mpdiag.measure.energy import ROUNDS, ArmWindows
from mpdiag.measure.energy import SECONDS as LONG_SECONDS
from mpdiag.measure.sharing import REST_SECONDS

SHORT_SECONDS = 2.1  # twenty ticks of the energy counter, the fewest that are worth a figure
MORE_ROUNDS = 5  # where there is time: the interval of five windows is half as wide as that of three
SO_THAT = "so that the other arms have their windows within the time budget"
LEAST_NEEDED = (FP16_PURE, BF16)  # for the answer, the control before an alternative


@dataclass(frozen=True)
class WindowPlan:
    """Windows of `seconds` each for every arm in `names`, in `rounds` turns; needs_seconds: for all of it."""

    names: tuple[str, ...]
    rounds: int
    seconds: float
    needs_seconds: float


def plan_windows(
    names: Sequence[str], ready_seconds: Mapping[str, float], room_seconds: float, later_seconds: float = 0.0
) -> WindowPlan:
    """The best plan that fits: long windows where there is time, then short ones, then fewer arms; else one each.

    Three windows an arm are the fewest that give an interval, which for FP32 and FP16 is worth more than BF16's single
    window. ready_seconds: what building and warming up an arm takes in each round, 0 where it is kept in memory.
    later_seconds: of the room, for what comes after and is worth less than three windows an arm, but more than longer
    ones. The last plan is given even where it does not fit; `needs_seconds` tells.
    """
    enough = _plan(names, ROUNDS, SHORT_SECONDS, ready_seconds)
    fewer, fewest = ([name for name in names if name not in LEAST_NEEDED[:count]] for count in (1, 2))
    plans = (
        _plan(names, MORE_ROUNDS, LONG_SECONDS, ready_seconds),
        _plan(names, ROUNDS, LONG_SECONDS, ready_seconds),
        enough,
        _plan(fewer, ROUNDS, SHORT_SECONDS, ready_seconds),
        _plan(fewest, ROUNDS, SHORT_SECONDS, ready_seconds),
        _plan(names, 1, SHORT_SECONDS, ready_seconds),
        _plan(fewest, 1, SHORT_SECONDS, ready_seconds),
    )
    room = room_seconds - later_seconds
    if enough.needs_seconds > room:
        room = room_seconds
    return next((plan for plan in plans if plan.needs_seconds <= room), plans[-1])


def _plan(names: Sequence[str], rounds: int, seconds: float, ready_seconds: Mapping[str, float]) -> WindowPlan:
    each = sum(ready_seconds.get(name, 0.0) + seconds + LEAD_IN_SECONDS for name in names)
    return WindowPlan(tuple(names), rounds, seconds, REST_SECONDS + rounds * each)


def with_left_out(windows: ArmWindows, names: Sequence[str]) -> ArmWindows:
    """The windows with an entry for every arm in `names`; those that the plan left out have none, and say why."""
    missing = [name for name in names if name not in windows.arms]
    return replace(
        windows,
        arms=windows.arms | {name: [] for name in missing},
        samples=windows.samples | dict.fromkeys(missing),
        failures=windows.failures | dict.fromkeys(missing, f"left out, {SO_THAT}"),
    )
