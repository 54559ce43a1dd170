"""A plan of islands comes back from its file, and what is no plan is refused."""

from __future__ import annotations

import json

import pytest

import mpdiag
from island_samples import Pair
from mpdiag.errors import UsageError
from mpdiag.plan import SavedPlan, plan_to_json, read_plan
from mpdiag.training.islands import is_island

# --- the file

SAVED = SavedPlan("FP16", ("head",), 14, "dynamic", 2000, "0.1", "model.py", modules=("Linear 4->4",))


def test_a_plan_comes_back_from_its_file(tmp_path):
    path = tmp_path / "model.plan.json"
    path.write_text(plan_to_json(SAVED))
    assert read_plan(path) == read_plan(str(path)) == read_plan(json.loads(path.read_text())) == SAVED
    assert list(json.loads(path.read_text())) == [
        "schema_version", "format", "keep_fp32", "log2_scale", "mode", "growth_interval", "made_by", "source",
        "alternative_to", "modules",
    ]  # fmt: skip
    assert is_island(mpdiag.apply(Pair(), path).head)


@pytest.mark.parametrize("plan", [{"schema_version": 1, "keep_fp32": ["head"], "new": 1}, SAVED, ("head",)])
def test_a_plan_may_be_a_dict_a_record_or_names(plan):
    assert is_island(mpdiag.apply(Pair(), plan).head)


@pytest.mark.parametrize(
    ("text", "slug", "said"),
    [
        (None, "no-such-file", "No such file"),
        ("{", "not-a-plan", "not JSON"),
        ("[]", "not-a-plan", "no schema_version"),
        ('{"schema_version": 2}', "not-a-plan", "schema_version 2, this mpdiag reads 1"),
        ('{"schema_version": 1}', "not-a-plan", "keep_fp32 is not a list"),
        ('{"schema_version": 1, "keep_fp32": [1]}', "not-a-plan", "keep_fp32 is not a list"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, text, slug, said):
    path = tmp_path / "x.plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        mpdiag.apply(Pair(), path)
    assert caught.value.slug == slug
    assert said in caught.value.message
