"""What `apply` says of a name that the model does not have: a name of the model, or those that it has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpdiag
from mpdiag.errors import UsageError
from mpdiag.training.islands import is_island


def numbered() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 1))


def refusal(model: nn.Module, name: str) -> str:
    with pytest.raises(UsageError) as caught:
        mpdiag.apply(model, [name])
    assert caught.value.slug == "unknown-module"
    assert not any(is_island(module) for module in model.modules())
    return caught.value.message


ALL_OF_THEM = 'it has "0" (Linear 24->64), "1" (ReLU), "2" (Linear 64->1)'


@pytest.mark.parametrize("name", ["9", "12", "Sequentail", "Sequential2"])
def test_the_type_of_the_model_is_no_name_in_it_and_a_number_is_not_like_another(name):
    assert refusal(numbered(), name) == f"the model has no module {name!r}; {ALL_OF_THEM}"


def test_a_misspelt_name_is_answered_with_the_one_that_was_meant():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder_head": nn.Linear(2, 2)})
    assert (
        refusal(model, "decoder.head") == "the model has no module 'decoder.head'; the closest name is 'decoder_head'"
    )


def test_of_many_names_those_nearest_to_the_top_are_told_and_the_others_counted():
    model = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()) for _ in range(4)], nn.Conv2d(8, 2, 1))
    told = refusal(model, "nothing like it")
    assert '"0" (Sequential), "1" (Sequential), "2" (Sequential), "3" (Sequential), "4" (Conv2d 8->2), ' in told
    assert told.endswith(" and 7 more")


def test_behind_a_wrapper_the_names_are_the_models_own():
    assert ALL_OF_THEM.removeprefix("it has ") in refusal(torch.compile(numbered(), backend="eager"), "9")
    assert ALL_OF_THEM.removeprefix("it has ") in refusal(nn.DataParallel(numbered()), "9")


def test_a_model_without_modules_has_none_to_offer():
    assert refusal(nn.Linear(1, 1), "fc") == "the model has no module 'fc'; it has none"


def test_the_model_still_goes_by_its_type():
    assert is_island(mpdiag.apply(numbered(), ["Sequential"]))
