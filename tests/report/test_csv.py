"""The CSV table, parsed back: every number returns, and what does not apply is empty."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import pandas as pd
import pytest

import report_samples as samples
from mpdiag.diagnosis import Diagnosis
from mpdiag.formats import BF16, FP16
from mpdiag.report import table
from text_samples import full

# CSV


def rows(diagnosis: Diagnosis) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.render(diagnosis))))


def test_the_csvs_header_is_its_columns():
    assert table.render(full()).splitlines()[0].split(",") == list(table.COLUMNS)


def test_the_csv_has_a_row_a_tensor_in_order():
    seen = full().capture.tables
    assert [(r["name"], r["kind"]) for r in rows(full())] == [(t.name, str(t.kind)) for t in seen]


def test_a_diagnosis_without_a_capture_is_a_header_alone():
    assert table.render(replace(full(), capture=None)) == ",".join(table.COLUMNS) + "\n"


def test_every_number_comes_back_from_the_csv_through_pandas():
    frame = pd.read_csv(io.StringIO(table.render(full())), keep_default_na=False, na_values=[""])
    for (_, row), t in zip(frame.iterrows(), full().capture.tables, strict=True):
        half, brain = t.histogram.usage(FP16), t.histogram.usage(BF16)
        assert (row["elements"], row["steps"], row["zeros"], row["infs"], row["nans"]) == (
            t.elements,
            t.steps,
            t.histogram.zeros,
            t.histogram.infs,
            t.histogram.nans,
        )
        shares = half.underflow, half.subnormal, half.overflow, brain.underflow
        read = row["fp16_underflow"], row["fp16_subnormal"], row["fp16_overflow"], row["bf16_underflow"]
        assert read == pytest.approx(shares, rel=1e-15)
        assert row["noise_level"] == t.noise_level
        for column, value in (("abs_max", t.abs_max), ("abs_min", t.abs_min)):
            assert math.isnan(row[column]) if value is None else row[column] == pytest.approx(value, rel=1e-15)


def test_what_does_not_apply_is_empty_in_the_csv_and_never_zero():
    mask = next(r for r in rows(full()) if r["name"] == "mask")
    assert (mask["abs_max"], mask["abs_min"], mask["amp_dtype"], mask["stagnant_fp16"]) == ("", "", "", "")
    assert mask["zeros"] == "1280"


def test_a_shares_absence_and_a_share_of_zero_differ_in_the_csv():
    found = {r["kind"]: r["stagnant_fp16"] for r in rows(full()) if r["name"] == "blocks.0.attn.qkv.weight"}
    assert found == {"weight": "", "weight_gradient": "", "weight_update": "0.05"}


@pytest.mark.parametrize("name", ['a,b"c"', "line\nbreak", "</script>", "=1+1", "ü\u202f"])
def test_any_name_comes_back_from_the_csv(name):
    diagnosis = full()
    tables = (replace(diagnosis.capture.tables[0], name=name, source=name),)
    read = rows(replace(diagnosis, capture=replace(diagnosis.capture, tables=tables)))
    assert [(r["name"], r["source"]) for r in read] == [(name, name)]


def test_the_data_frame_holds_what_the_csv_does():
    import io

    import pandas

    import mpdiag

    made = mpdiag.frame(full())
    assert list(made.columns) == list(table.COLUMNS)
    assert made["name"].tolist() == [t.name for t in samples.tables()]
    read_back = pandas.read_csv(io.StringIO(table.render(full())))
    assert made["fp16_underflow"].tolist() == read_back["fp16_underflow"].tolist()


def test_bf16_weights_have_no_share_stagnant_in_fp16_in_the_csv():
    diagnosis = full()
    assert diagnosis.capture is not None
    tables = (replace(diagnosis.capture.tables[0], stagnant={"BF16": 0.5}),)
    (read,) = rows(replace(diagnosis, capture=replace(diagnosis.capture, tables=tables)))
    assert read["stagnant_fp16"] == ""
