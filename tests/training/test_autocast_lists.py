"""The operator lists of CUDA autocast: the frozen table, the header's, and what torch itself registered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpdiag.training import autocast_lists
from mpdiag.training.autocast_lists import FROZEN, AutocastLists, installed, parse

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
GROUPS = ("lower", "fp32", "fp32_dtype", "promote")
IS_2_13 = torch.__version__.startswith("2.13.")
# what torch registers outside the four macros: wrappers of cuDNN's own entries, the norms that get a dtype appended,
# and the loss that autocast refuses
REST = {
    "aten::binary_cross_entropy",
    "aten::cudnn_convolution",
    "aten::cudnn_convolution_transpose",
    "aten::norm.Scalar",
    "aten::norm.ScalarOpt_dim",
}


def names(lists: AutocastLists) -> list[str]:
    return [name for group in GROUPS for name in getattr(lists, group)]


@pytest.fixture
def fresh_installed():
    """`installed` without its memory, before and after."""
    installed.cache_clear()
    yield installed
    installed.cache_clear()


@pytest.mark.skipif(not IS_2_13, reason="the frozen table is torch 2.13's")
@pytest.mark.parametrize("group", GROUPS)
def test_the_frozen_table_is_the_installed_headers(group):
    assert installed().source == "ATen/autocast_mode.h"
    assert getattr(FROZEN, group) == getattr(installed(), group)


@pytest.mark.skipif(not IS_2_13, reason="counts of torch 2.13")
def test_the_lists_have_the_lengths_of_torch_2_13():
    assert [len(getattr(installed(), group)) for group in GROUPS] == [33, 59, 11, 11]


def test_every_listed_operator_exists_in_this_torch():
    known = set(torch._C._dispatch_get_all_op_names())
    assert [name for name in names(installed()) if f"aten::{name}" not in known] == []


def test_torchs_cuda_registrations_are_our_lists_and_the_known_rest():
    registered = set(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"))
    registered = {name for name in registered if name.startswith("aten::")}
    assert registered - {f"aten::{name}" for name in names(installed())} == REST


def test_every_listed_operator_is_one_that_torch_registers_for_cuda():
    registered = set(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"))
    assert {f"aten::{name}" for name in names(installed())} - registered == set()


@pytest.mark.parametrize("lists", [FROZEN, installed()], ids=["frozen", "installed"])
def test_no_operator_is_listed_twice(lists):
    assert sorted(names(lists)) == sorted(set(names(lists)))


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("lower", "linear"),
        ("lower", "conv_transpose2d.input"),
        ("lower", "scaled_dot_product_attention"),
        ("fp32", "pow.Tensor_Scalar"),
        ("fp32", "layer_norm"),
        ("fp32_dtype", "softmax.int"),
        ("fp32_dtype", "sum.dim_IntList"),
        ("promote", "index_put"),
    ],
)
def test_well_known_operators_stand_where_the_amp_page_puts_them(group, name):
    assert name in getattr(installed(), group)


@pytest.mark.parametrize("name", ["cat", "batch_norm", "gelu", "mean", "embedding", "cross_entropy_loss"])
def test_operators_that_run_in_their_inputs_type_are_in_no_list(name):
    assert name not in names(installed())


@pytest.mark.parametrize(
    "macro", ["LOWER_PRECISION_FP(", "FP32(", "FP32_SET_OPT_DTYPE(", "PROMOTE("], ids=lambda macro: macro[:-1]
)
def test_a_header_without_one_of_the_macros_gives_none(macro):
    text = HEADER.read_text(encoding="utf-8")
    broken = text.replace(f"#define AT_FORALL_{macro}", "#define SOMETHING_ELSE(")
    assert broken != text
    assert parse(broken) is None


@pytest.mark.parametrize("text", ["", "int main() {}", "#define AT_FORALL_FP32(_) _(exp)"])
def test_text_that_is_not_the_header_gives_none(text):
    assert parse(text) is None


def test_a_header_with_an_empty_list_gives_none():
    macros = ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE")
    filled = "\n".join(f"#define AT_FORALL_{macro}(_) \\\n  _(exp)\n" for macro in macros)
    assert parse(filled + "\n#define AT_FORALL_PROMOTE(_) \\\n\n") is None


def test_a_small_header_is_read_with_overloads_and_comments():
    filled = ""
    for macro, op in (
        ("LOWER_PRECISION_FP", "linear"),
        ("FP32", "exp"),
        ("FP32_SET_OPT_DTYPE", "sum"),
        ("PROMOTE", "dot"),
    ):
        filled += f"#define AT_FORALL_{macro}(_) \\\n  /* a comment */ \\\n"
        filled += f"  _({op}) \\\n  _(pow, Tensor_Scalar) \\\n  _( a , b )\n\n"
    lists = parse(filled)
    assert lists.lower == ("linear", "pow.Tensor_Scalar", "a.b")
    assert lists.fp32 == ("exp", "pow.Tensor_Scalar", "a.b")
    assert lists.fp32_dtype == ("sum", "pow.Tensor_Scalar", "a.b")
    assert lists.promote == ("dot", "pow.Tensor_Scalar", "a.b")


def test_a_torch_without_headers_gives_the_frozen_table(fresh_installed, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert fresh_installed() is FROZEN


def test_an_unreadable_header_gives_the_frozen_table(fresh_installed, monkeypatch, tmp_path):
    header = tmp_path / "include" / "ATen" / "autocast_mode.h"
    header.parent.mkdir(parents=True)
    header.write_text("nothing of use", encoding="utf-8")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert fresh_installed() is FROZEN


def test_the_lists_are_read_once():
    assert autocast_lists.installed() is autocast_lists.installed()
