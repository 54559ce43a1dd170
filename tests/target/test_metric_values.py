"""What evaluate gives that is not one real number: named, with its metric."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from mpdiag.errors import UsageError
from mpdiag.target.metrics import metric_of


class Sad:
    def __float__(self) -> float:
        raise ValueError("not today")


def given(value: Any) -> dict[str, float]:
    measure = metric_of({"evaluate": lambda model: value}, "job.py")
    assert measure is not None
    return measure(torch.nn.Identity())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor([0.5, 0.6]), "a tensor of shape (2,)"),
        (torch.ones(2, 0), "a tensor of shape (2, 0)"),
        (np.array([0.5, 0.6]), "an array of shape (2,)"),
        (torch.tensor(1 + 2j), "a complex number"),
        (np.complex64(1 + 2j), "a complex number"),
        (1 + 2j, "a complex number"),
        ("0.5", "str"),
        (None, "NoneType"),
        ({"acc": 0.5}, "dict"),
        (True, "bool"),
        (10**400, "int, which gives no float: int too large to convert to float"),
        (Sad(), "Sad, which gives no float: not today"),
    ],
)
def test_what_is_not_one_number_is_refused_by_the_name_of_its_metric(value, said):
    with warnings.catch_warnings(action="error"), pytest.raises(UsageError) as caught:
        given({"loss": 1.0, "acc": value})
    assert (caught.value.slug, caught.value.message) == (
        "metric-not-a-number",
        f"job.py: evaluate(model) gives acc as {said}",
    )


@pytest.mark.parametrize("value", [None, "0.5", torch.ones(2), 1j])
def test_a_bare_value_has_no_name(value):
    with pytest.raises(UsageError, match=r"job.py: evaluate\(model\) returned (NoneType|str|a tensor|a complex)"):
        given(value)


@pytest.mark.parametrize(
    "value", [0.5, torch.tensor(0.5), torch.tensor([[0.5]]), np.float16(0.5), np.array([0.5]), np.array(0.5)]
)
def test_a_number_in_any_wrapping_is_taken(value):
    assert given({"acc": value}) == {"acc": 0.5}
