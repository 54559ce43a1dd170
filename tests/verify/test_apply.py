"""What `apply` does to a model, which names it finds, and what it refuses."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import mpdiag
from island_samples import CPU, Pair, bf16, job
from mpdiag.errors import UsageError
from mpdiag.training.islands import fp32_islands, is_island, lift_islands
from mpdiag.training.precision import FP16_AUTOCAST
from mpdiag.training.session import open_session

# --- apply


def test_apply_returns_the_model_and_is_idempotent():
    model = Pair()
    assert mpdiag.apply(model, ["head"]) is model
    kind = type(model.head)
    assert fp32_islands(model, ["head"]) == ()
    assert type(model.head) is kind


def test_an_island_is_still_what_it_was():
    model = Pair()
    keys, text = list(model.state_dict()), repr(model)
    mpdiag.apply(model, ["head", "body"])
    assert (list(model.state_dict()), repr(model)) == (keys, text)
    assert isinstance(model.head, nn.Linear)
    assert type(model.head).__name__ == "Linear"
    Pair().load_state_dict(model.state_dict())


def test_two_islands_of_a_kind_are_of_one_class():
    model = mpdiag.apply(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), ["0", "1"])
    assert type(model[0]) is type(model[1])


def test_a_module_with_two_names_is_one_island():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert fp32_islands(model, ["b", "a"]) == (shared,)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_islands_of_their_own(copied):
    model = mpdiag.apply(Pair(), ["head"])
    other = copied(model)
    assert is_island(other.head)
    assert type(other.head) is type(model.head)
    assert other.head.weight is not model.head.weight
    with bf16():
        assert other(torch.randn(2, 4)).dtype == torch.float32


def test_lifting_makes_plain_modules_again():
    model = mpdiag.apply(Pair(), ["head"])
    lift_islands(model.modules())
    assert type(model.head) is nn.Linear
    with bf16():
        assert model(torch.randn(2, 4)).dtype == torch.bfloat16


def test_an_unknown_name_is_an_error_that_names_the_closest_and_changes_nothing():
    model = Pair()
    with pytest.raises(UsageError) as caught:
        mpdiag.apply(model, ["head", "bodi"])
    assert caught.value.slug == "unknown-module"
    assert caught.value.message == "the model has no module 'bodi'; the closest name is 'body'"
    assert not is_island(model.head)


def test_names_are_found_behind_wrappers():
    model = torch.compile(Pair(), backend="eager")
    mpdiag.apply(model, ["head"])
    assert is_island(model._orig_mod.head)
    wrapped = nn.DataParallel(Pair())
    mpdiag.apply(wrapped, ["body.0"])
    assert is_island(wrapped.module.body[0])


@pytest.mark.parametrize("name", ["", "Pair"])
def test_the_model_itself_goes_by_its_class_or_no_name(name):
    model = mpdiag.apply(Pair(), [name])
    with bf16():
        assert model(torch.randn(2, 4)).dtype == torch.float32


def test_a_module_in_half_precision_is_refused():
    with pytest.raises(UsageError, match="'head' holds float16 parameters") as caught:
        mpdiag.apply(Pair().half(), ["head"])
    assert caught.value.slug == "island-not-fp32"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused():
    with pytest.raises(UsageError) as caught:
        mpdiag.apply(nn.Sequential(torch.jit.script(nn.Linear(1, 1))), ["0"])
    assert caught.value.slug == "island-scripted"


def test_a_session_lifts_its_islands_for_a_job_that_builds_one_object_again():
    one = nn.Sequential(nn.Linear(1, 1))
    the_job = job(lambda: one)
    start = the_job.start(0, 1)
    with open_session(the_job, start, replace(FP16_AUTOCAST, keep_fp32=("0",)), CPU) as run:
        assert is_island(run.model[0])
        assert not is_island(one[0])  # the run has a copy
    assert not is_island(run.model[0])


def test_apply_is_found_without_torch():
    code = "import sys, mpdiag; mpdiag.apply; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Final(nn.Linear):
    def __init_subclass__(cls, **kwargs):
        raise TypeError("no more of these")


def test_a_class_that_refuses_to_be_derived_from_is_one_error_and_no_module_is_changed():
    model = nn.Sequential(nn.Linear(2, 2), Final(2, 2))
    with pytest.raises(UsageError, match="1 cannot stay in FP32: Final cannot be derived from: no more of these"):
        fp32_islands(model, ["0", "1"])
    assert [type(module) for module in model] == [nn.Linear, Final]


def test_an_island_that_was_parametrized_afterwards_is_still_one():
    model = nn.Sequential(nn.Linear(2, 2))
    fp32_islands(model, ["0"])
    nn.utils.parametrizations.weight_norm(model[0])
    assert is_island(model[0])
    assert fp32_islands(model, ["0"]) == ()
