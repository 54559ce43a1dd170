"""The order of arms: every arm at every place and after every other one, equally often; the same at every call."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.measure.turns import turns_of

NAMES = tuple("abcdefgh")


@pytest.mark.parametrize("count", range(1, 9))
def test_a_whole_design_balances_places_and_neighbours(count):
    names = NAMES[:count]
    rounds = count * (1 + count % 2)
    found = turns_of(names, rounds)
    places = Counter((name, place) for row in found for place, name in enumerate(row))
    assert set(places.values()) == {rounds // count}
    assert len(places) == count**2
    neighbours = Counter(pair for row in found for pair in pairwise(row))
    assert len(neighbours) == count * (count - 1)  # nobody follows itself within a round
    assert len(set(neighbours.values())) <= 1


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 99))
def test_every_round_has_every_name_once_whatever_the_number_of_rounds(count, rounds, seed):
    names = [str(i) for i in range(count)]
    found = turns_of(names, rounds, seed)
    assert len(found) == rounds
    assert all(sorted(row) == names for row in found)


def test_few_rounds_of_many_arms_give_no_arm_one_neighbour_only():
    found = turns_of(NAMES[:7], 6)
    before = {name: {a for row in found for a, b in pairwise(row) if b == name} for name in NAMES[:7]}
    assert min(map(len, before.values())) >= 3


def test_the_order_is_the_same_at_every_call_and_another_with_another_seed():
    assert turns_of(NAMES, 8) == turns_of(NAMES, 8)
    assert turns_of(NAMES, 8) != turns_of(NAMES, 8, seed=1)
