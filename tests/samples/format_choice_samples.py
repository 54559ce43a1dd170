"""GPUs, advice, forecasts and verifications from which a format is chosen."""

import report_samples as samples
from mpdiag.advice.format_choice import choose_format
from mpdiag.diagnosis import Advice, Environment, Finding, LossScaleAdvice, Verification
from mpdiag.other_formats import FormatForecast
from mpdiag.plan import IslandPlan

GPUS = {
    "V100": ("Tesla V100-SXM2-16GB", "7.0"),
    "T4": ("Tesla T4", "7.5"),
    "GTX 1660": ("NVIDIA GeForce GTX 1660", "7.5"),
    "P100": ("Tesla P100-PCIE-16GB", "6.0"),
    "A100": ("NVIDIA A100-SXM4-40GB", "8.0"),
    "L4": ("NVIDIA L4", "8.9"),
    "H100": ("NVIDIA H100 80GB HBM3", "9.0"),
    "B200": ("NVIDIA B200", "10.0"),
    "RTX 5090": ("NVIDIA GeForce RTX 5090", "12.0"),
}


MP101 = Finding("MP101", "overflow", "error", "fc", "overflows", {}, "keep fc in FP32")


PLAN = IslandPlan(("fc",), True, True, 12, "dynamic", 2000, 3, 0.5, False)


def machine(known=None, **more):
    name, capability = GPUS[known] if known else (None, None)
    fields = {"gpu": name, "compute_capability": capability, "cuda": "13.0" if known else None, **more}
    return Environment(python="3.12", torch="2.11", mpdiag="0", platform="Linux", cpu_threads=2, **fields)


def scale(log2_scale=14, reason="window 2^4..2^18"):
    return LossScaleAdvice(log2_scale, "dynamic", 4, 18, {}, 0.1, 0.0, 0.0, 0.0, "", reason)


def forecast(name, part="forward", losing=0, overflow=0.0):
    return FormatForecast(name, part, "none", 9, 4, 0.0, 0.0, overflow, losing, None, 0.0, "")


FORECASTS = tuple(forecast(name) for name in ("TF32", "BF16", "E4M3", "E5M2", "MXFP8", "NVFP4"))


def advice(*findings, loss_scale=None, forecasts=FORECASTS, plan=None):
    return Advice("FP16", loss_scale or scale(), findings, other_formats=forecasts, plan=plan)


def verified(train_with, emulated=False, **verdicts):
    """A verification of arms by their loss's verdicts."""
    named = {arm.replace("_", "-"): verdict for arm, verdict in verdicts.items()}
    comparisons = tuple(samples.comparison(arm, verdict=verdict) for arm, verdict in named.items())
    trials = tuple(samples.run_of(arm, emulated=emulated) for arm in named)
    return Verification(trials, comparisons, None, "", train_with=train_with)


def chosen(gpu, **more):
    run = more.pop("run", None)
    return choose_format(machine(gpu), advice(**more), run)


def why(choice, fmt):
    return {option.format: option.why for option in choice.options}[fmt]
