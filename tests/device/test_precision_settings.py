"""Settings that come back: fp32_precision, what inherits it, and torch's older flags beside it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mpdiag.device.precision_settings import configured, fp32_products, is_ieee

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def all_settings() -> dict[str, str]:
    return {**configured(CPU), **configured(CUDA)}


@pytest.fixture
def mixed_settings() -> Iterator[dict[str, str]]:
    """The user's settings: TF32 here, BF16 there; put back after the test."""
    switches = (torch.backends.cuda.matmul, "tf32"), (torch.backends.mkldnn.matmul, "bf16")
    before = [(s, s.fp32_precision) for s, _ in switches]
    for switch, value in switches:
        switch.fp32_precision = value
    yield all_settings()
    for switch, value in before:
        switch.fp32_precision = value


def test_within_ieee_fp32_every_switch_says_ieee(mixed_settings):
    assert {mixed_settings["cuda.matmul"], mixed_settings["mkldnn.matmul"]} == {"tf32", "bf16"}
    with fp32_products("ieee"):
        assert set(all_settings().values()) == {"ieee"}
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_the_users_settings_come_back(mixed_settings):
    with fp32_products("ieee"):
        pass
    assert all_settings() == mixed_settings


def test_the_users_settings_come_back_after_an_exception(mixed_settings):
    with pytest.raises(ZeroDivisionError), fp32_products("ieee"):
        raise ZeroDivisionError
    assert all_settings() == mixed_settings


def test_the_users_settings_come_back_after_nesting(mixed_settings):
    with fp32_products("ieee"), fp32_products("ieee"):
        pass
    assert all_settings() == mixed_settings


ROOT, CUDA_PARENT, MKLDNN = torch.backends, torch.backends.cudnn, torch.backends.mkldnn.matmul
CHANGES = [(p, a, b) for p in (ROOT, CUDA_PARENT) for a, b in (("tf32", "ieee"), ("ieee", "tf32"), ("none", "ieee"))]


def changed_later(parent: object, first: str, then: str, within: str | None, own: tuple[object, ...] = ()) -> list:
    """The settings with a parent at `first`, and then at `then`; in between a run in FP32 products, or none."""
    seen = []
    try:
        parent.fp32_precision = first
        for switch in own:
            switch.fp32_precision = first
        if within:
            with fp32_products(within):
                pass
        for value in (first, then, "none"):
            parent.fp32_precision = value
            seen.append((all_settings(), ROOT.fp32_precision, CUDA_PARENT.fp32_precision))
    finally:
        for switch in (torch.backends.cuda.matmul, MKLDNN, CUDA_PARENT, ROOT):
            switch.fp32_precision = "none"
    return seen


@pytest.mark.parametrize("within", ["ieee", "tf32"])
@pytest.mark.parametrize(("parent", "first", "then"), CHANGES)
def test_a_setting_that_followed_its_parent_follows_it_afterwards(parent, first, then, within):
    plain = changed_later(parent, first, then, None)  # first: a setting that no longer follows would not here either
    assert changed_later(parent, first, then, within) == plain


@pytest.mark.parametrize("own", [torch.backends.cuda.matmul, CUDA_PARENT, MKLDNN])
def test_a_setting_of_the_users_own_stays_where_its_parent_says_the_same_at_the_time(own):
    plain = changed_later(ROOT, "tf32", "ieee", None, (own,))
    after = changed_later(ROOT, "tf32", "ieee", "ieee", (own,))
    assert after == plain
    assert "tf32" in after[1][0].values()


def test_tf32_within_ieee_and_out_again_leaves_what_was_inherited():
    with fp32_products("ieee"):
        before = all_settings()
        with fp32_products("tf32"):
            assert {value for name, value in all_settings().items() if not name.startswith("mkldnn")} == {"tf32"}
        assert all_settings() == before
    assert torch.backends.cuda.matmul.fp32_precision == "none"


def test_a_device_has_the_switches_of_its_own_backends():
    assert {name.partition(".")[0] for name in configured(CPU)} == {"mkldnn"}
    assert {name.partition(".")[0] for name in configured(CUDA)} == {"cuda", "cudnn"}


def test_settings_are_ieee_when_no_switch_of_the_device_lowers_them(mixed_settings):
    assert is_ieee(CPU) is False
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    assert is_ieee(CPU) is True


# torch's older flags: readable within, and afterwards what they were


def older_flags() -> dict[str, object]:
    """What torch's older interface says; "raises" where it refuses, because the newer one says another thing."""
    reads: dict[str, Callable[[], object]] = {
        "cudnn": lambda: torch.backends.cudnn.allow_tf32,
        "cudnn.flags": lambda: torch._C._get_cudnn_allow_tf32(),  # which the context manager asks
        "matmul": lambda: torch.backends.cuda.matmul.allow_tf32,
        "word": torch.get_float32_matmul_precision,
    }
    found: dict[str, object] = dict.fromkeys(reads, "raises")
    for name, read in reads.items():
        with suppress(RuntimeError):
            found[name] = read()
    return found


AGREEING = {
    "ieee": {"cudnn": False, "cudnn.flags": False, "matmul": False, "word": "highest"},
    "tf32": {"cudnn": True, "cudnn.flags": True, "matmul": True, "word": "high"},
}


def allow_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def newer_tf32() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


USERS = {
    "nothing": lambda: None,
    "allow_tf32": allow_tf32,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "the newer way": newer_tf32,
}


@pytest.fixture
def matmul_flags() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    for switch in (torch.backends.cuda.matmul, MKLDNN):
        switch.fp32_precision = "none"


@pytest.mark.parametrize("within", ["ieee", "tf32"])
@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_the_older_flags_can_be_read_within_and_say_the_same(user, within, matmul_flags):
    user()
    with fp32_products(within):
        assert older_flags() == AGREEING[within]
        with fp32_products("tf32"):
            assert older_flags() == AGREEING["tf32"]
        assert older_flags() == AGREEING[within]
        assert {value for name, value in all_settings().items() if name.startswith("mkldnn")} == {"ieee"}


@pytest.mark.parametrize("within", ["ieee", "tf32"])
@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_the_older_flags_are_afterwards_what_they_were_also_when_a_parent_is_set(user, within, matmul_flags):
    user()
    seen = []
    for scanned in (False, True):
        if scanned:
            with fp32_products(within):
                torch.set_float32_matmul_precision("medium")  # what the user's code sets within ends with the block
        found = [(all_settings(), older_flags())]
        for parent in (ROOT, CUDA_PARENT):
            parent.fp32_precision = "tf32"
            found.append((all_settings(), older_flags()))
            parent.fp32_precision = "none"
        seen.append(found)
    assert seen[0] == seen[1]


def test_a_model_compiled_within_leaves_no_setting_behind():
    plain = changed_later(CUDA_PARENT, "none", "tf32", None)
    with fp32_products("ieee"):
        torch.compiler.reset()
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))  # torch writes down what matmul inherits
    assert changed_later(CUDA_PARENT, "none", "tf32", None) == plain


def test_the_older_flags_are_torchs_own_afterwards():
    before = torch._C._get_cudnn_allow_tf32, vars(type(torch.backends.cudnn))["allow_tf32"].getter
    with pytest.raises(ZeroDivisionError), fp32_products("ieee"), fp32_products("tf32"):
        raise ZeroDivisionError
    assert (torch._C._get_cudnn_allow_tf32, vars(type(torch.backends.cudnn))["allow_tf32"].getter) == before


def test_nothing_warns_of_the_older_flags(matmul_flags):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fp32_products("tf32"), fp32_products("ieee"):
            pass


# a process for each: what torch.backends.cudnn.flags() once wrote cannot be had back


IN_A_PROCESS = """
import json, os, sys
import torch
sys.path.insert(0, {tests!r})
from test_precision_settings import CUDA_PARENT, ROOT, all_settings, older_flags
from mpdiag.training.precision import FP32_IEEE, Precision, in_force
from mpdiag.training.session import open_session
from mpdiag.target.job import ONLY, Job

def losses(model, batch):
    with torch.backends.cudnn.flags(deterministic=True):
        yield ONLY, model(batch).sum()
    if torch.backends.cuda.matmul.allow_tf32 and torch.get_float32_matmul_precision() == "highest":
        raise AssertionError

job = Job("tiny", "tiny.py", lambda: torch.nn.Linear(1, 1), lambda: [torch.ones(1, 1)], losses,
          lambda model: {{ONLY: torch.optim.SGD(model.parameters(), lr=1.0)}})
seen = []
{user}
if {scanned}:
    for precision in (FP32_IEEE, Precision("TF32", tf32=True)):
        with open_session(job, job.start(0, 1), precision, torch.device("cpu")) as run:
            wanted = "tf32" if precision.tf32 else "ieee"
            for _ in range(2):
                run.step(run.place(torch.ones(1, 1)))
                assert {{v for n, v in all_settings().items() if n.startswith("cu")}} == {{wanted}}, all_settings()
else:
    with torch.backends.cudnn.flags(deterministic=True):
        pass
for value in ("none", "ieee", "tf32", "none"):
    for parent in (ROOT, CUDA_PARENT):
        parent.fp32_precision = value
        seen.append((all_settings(), older_flags()))
print(json.dumps(seen))
"""


@pytest.mark.parametrize(
    "user",
    ["", "torch.backends.cudnn.allow_tf32 = False", "torch.backends.cuda.matmul.allow_tf32 = True"],
    ids=["untouched", "cudnn off", "matmul on"],
)
def test_torchs_own_context_manager_runs_in_the_loss_and_leaves_what_it_leaves_without_a_scan(user):
    texts = []
    for scanned in (False, True):
        code = IN_A_PROCESS.format(tests=str(Path(__file__).parent), user=user, scanned=scanned)
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        texts.append(found.stdout)
    assert texts[0] == texts[1]
