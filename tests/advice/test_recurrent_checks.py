"""MP309: BF16 autocast leaves torch's recurrent layers in FP16, and is no way out of FP16's range for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

import report_samples as samples
from capture_samples import ACTIVATION, ACTIVATION_GRADIENT, found, only, table
from mpdiag.advice.checks.recurrent import RECURRENT, recurrent_in_fp16
from mpdiag.advice.format_choice import choose_format
from mpdiag.diagnosis import Advice, Environment, Finding, LossScaleAdvice, Verification
from mpdiag.other_formats import FormatForecast
from mpdiag.plan import IslandPlan

OVERFLOW = Finding("MP101", "overflow", "error", "fc", "overflows", {}, "keep fc in FP32")
FITS = tuple(
    FormatForecast(name, "forward", "none", 9, 4, 0.0, 0.0, 0.0, 0, None, 0.0, "") for name in ("TF32", "BF16")
)
PLAN = IslandPlan(("fc",), True, True, 12, "dynamic", 2000, 3, 0.5, False)
H100 = Environment("3.12", "2.11", "0", "Linux", 2, cuda="13.0", gpu="H100", compute_capability="9.0")
LAPTOP = Environment("3.12", "2.11", "0", "Linux", 2)


def layer(kind: str, name: str = "lstm", amp_dtype: str | None = "float16"):
    return table(name, ACTIVATION, {0: 8}, module_type=kind, amp_dtype=amp_dtype)


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_a_recurrent_layer_that_autocast_has_in_16_bits_is_told(kind):
    told = only("MP309", layer(kind))
    assert (told.severity, told.subject, told.source) == ("info", "lstm", "model.py:7")
    assert told.message == "lstm computes in FP16 under BF16 autocast too, and there without a loss scale"
    assert told.evidence == {"modules": 1, "module_type": kind}
    assert "self.lstm(x.float())" in told.snippet


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "Linear", "RNNT"])
def test_what_follows_autocasts_type_is_not_told(kind):
    assert found("MP309", layer(kind)) == []


def test_a_layer_that_is_an_fp32_island_already_is_not_told():
    assert found("MP309", layer("LSTM", amp_dtype="float32")) == []


def test_where_the_fp16_iteration_raised_the_types_are_torchs_all_the_same():
    assert len(found("MP309", layer("LSTM", amp_dtype=None))) == 1


def test_several_layers_share_one_finding():
    told = only("MP309", *(layer("GRU", f"gru{i}") for i in range(4)), table("gru0", ACTIVATION_GRADIENT, {0: 1}))
    assert told.message.startswith("gru0, gru1, gru2 and 1 more compute in FP16 under BF16")
    assert told.evidence["modules"] == 4


def test_the_classes_are_torchs_own():
    from torch import nn

    assert {kind.__name__ for kind in nn.RNNBase.__subclasses__() if kind.__module__ == "torch.nn.modules.rnn"} == set(
        RECURRENT
    )


# the choice of a format


def advice(*findings: Finding, plan: IslandPlan | None = None) -> Advice:
    scale = LossScaleAdvice(14, "dynamic", 4, 18, {}, 0.1, 0.0, 0.0, 0.0, "", "window 2^4..2^18")
    return Advice("FP16", scale, findings, other_formats=FITS, plan=plan)


def recurrent(modules: int = 1) -> Finding:
    told = only("MP309", layer("LSTM"))
    return replace(told, evidence=told.evidence | {"modules": modules})


@pytest.mark.parametrize(
    ("machine", "plan", "chosen"),
    [(H100, None, "TF32"), (H100, PLAN, "FP16 with FP32 islands"), (LAPTOP, PLAN, "FP16 with FP32 islands"),
     (LAPTOP, None, "FP32")],
)  # fmt: skip
def test_bf16_is_not_offered_as_the_way_out_of_fp16s_range(machine, plan, chosen):
    without = choose_format(machine, advice(OVERFLOW, plan=plan), None)
    choice = choose_format(machine, advice(OVERFLOW, recurrent(), plan=plan), None)
    assert (without.chosen, choice.chosen) == ("BF16", chosen)
    assert "BF16 is no way out: under it lstm computes in FP16, without a loss scale (MP309)" in choice.reason


def test_fp16_that_fits_stays_and_bf16s_line_says_what_it_is():
    choice = choose_format(H100, advice(recurrent(3)), None)
    assert choice.chosen == "FP16"
    (bf16,) = [option.why for option in choice.options if option.format == "BF16"]
    assert bf16.endswith("not trained here; under it lstm and 2 more compute in FP16, without a loss scale (MP309)")


def test_bf16_that_was_trained_and_kept_up_is_offered_with_the_note():
    comparisons = (samples.comparison("bf16"), samples.comparison("fp16", verdict="worse"))
    run = Verification((samples.run_of("bf16"),), comparisons, None, "", train_with="bf16")
    choice = choose_format(H100, advice(OVERFLOW, recurrent()), run)
    assert (choice.chosen, choice.verified) == ("BF16", True)
    assert choice.reason == (
        "trained here and keeps up with FP32; under it lstm computes in FP16, without a loss scale (MP309)"
    )


def test_without_such_a_finding_there_is_nothing_to_note():
    assert recurrent_in_fp16(advice(OVERFLOW)) is None
