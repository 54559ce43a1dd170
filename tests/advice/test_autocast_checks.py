"""The findings on what autocast computes, MP301 to MP304: captures that deserve each or do not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from capture_samples import ACTIVATION, WEIGHT_GRADIENT, capture, found, only, table
from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.loss_scale import recommend

# MP301 must-stay-fp32


@pytest.mark.parametrize("kind", ["MySoftmax", "RMSNorm", "ContrastiveLoss"])
def test_mp301_a_softmax_norm_or_loss_that_gives_fp16_is_a_warning(kind):
    f = only("MP301", table("part", ACTIVATION, {0: 1}, 1.5, module_type=kind))
    assert (f.severity, f.subject) == ("warning", "part")
    assert f.message == f"part ({kind}) computes in FP16 under autocast"
    assert f.evidence == {"amp_dtype": "float16", "abs_max": 1.5}


@pytest.mark.parametrize(
    "kind", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm2d", "SyncBatchNorm", "Normalize", "Linear"]
)
def test_mp301_torchs_batch_and_instance_norms_may_give_fp16(kind):
    assert found("MP301", table("part", ACTIVATION, {0: 1}, module_type=kind)) == []


def test_mp301_a_norm_that_gives_fp32_is_not():
    assert found("MP301", table("part", ACTIVATION, {0: 1}, module_type="LayerNorm", amp_dtype="float32")) == []


# MP302 loss-in-fp16


def test_mp302_an_fp16_loss_that_overflows_at_the_scale_is_an_error():
    seen = table("w", WEIGHT_GRADIENT, {-50: 1000}), table("v", WEIGHT_GRADIENT, {10: 1000})
    f = only("MP302", *seen, losses=(0.5, 2.0, math.nan), loss_amp_dtype="float16")
    assert (f.severity, f.subject) == ("error", "the loss")
    assert f.message == "the loss is FP16 under autocast; its largest value 2 times 2^16 overflows"
    assert f.evidence == {"loss": 2.0, "log2_scale": 16, "limit": 65520.0}


def test_mp302_an_fp16_loss_that_fits_the_recommended_scale_is_a_warning():
    f = only("MP302", table("w", WEIGHT_GRADIENT, {-30: 1000}), losses=(2.0,), loss_amp_dtype="float16")
    assert (f.severity, f.evidence["log2_scale"]) == ("warning", 8)
    assert f.message.endswith("2 times 2^8 still fits")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_mp302_another_loss_is_not(dtype):
    assert found("MP302", losses=(1e6,), loss_amp_dtype=dtype) == []


# MP303 bce-unsafe, MP304 autocast-fails

BCE = "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast"


def test_mp303_binary_cross_entropy_is_an_error():
    f = only("MP303", amp_error=BCE)
    assert (f.severity, f.subject, f.message) == (
        "error",
        "the loss",
        "binary_cross_entropy raises under CUDA autocast",
    )
    assert f.evidence == {"error": BCE}


def test_mp304_leaves_binary_cross_entropy_to_mp303():
    assert found("MP304", amp_error=BCE) == []


def test_mp304_another_failure_is_an_error_and_quotes_it():
    f = only("MP304", amp_error="expected scalar type Float but found Half")
    assert (f.severity, f.subject) == ("error", "the forward pass")
    assert f.message == "an FP16 autocast iteration fails: expected scalar type Float but found Half"
    assert found("MP303", amp_error="expected scalar type Float but found Half") == []


def test_mp304_names_the_line_that_raised():
    f = only("MP304", amp_error="TypeError while computing the loss: a and b differ, at my job.py:21")
    assert f.source == "my job.py:21"
    assert f.remedy.startswith("mend my job.py:21, or put an FP32 island around it; `--depth ops`")


def test_mp304_tells_a_constant_beyond_fp16_apart():
    f = only("MP304", amp_error="RuntimeError: value cannot be converted to type c10::Half without overflow, at a.py:3")
    assert f.remedy.startswith("write a smaller constant at a.py:3; for a mask torch.finfo(scores.dtype).min (MP305")
    assert "masked_fill" in f.snippet


def test_mp304_an_operator_that_only_the_cpu_lacks_is_information_about_the_emulation():
    error = "\"histogramdd\" not implemented for 'Half'"
    f = only("MP304", amp_error=error)
    assert (f.severity, f.subject) == ("info", "the emulation")
    gpu = replace(capture(amp_error=error), device="cuda")
    assert [f.severity for f in BY_CODE["MP304"].find(gpu, recommend(gpu))] == ["error"]
