"""Two hand-made diagnoses for the report tests: a full one, and the least an interrupted scan leaves."""

from __future__ import annotations

import math
from dataclasses import replace

from mpdiag.accuracy import ControlOutcome, CurveBand, GradientCheck, GradientError, PairedTest
from mpdiag.diagnosis import (
    Advice,
    Capture,
    Comparison,
    Diagnosis,
    EnergyLost,
    Environment,
    Finding,
    LossScaleAdvice,
    ScalePoint,
    SelfTest,
    TargetRecord,
    TensorKind,
    TensorTable,
    Trial,
    Verification,
)
from mpdiag.formats import FP16
from mpdiag.histogram import ExponentHistogram

HOSTILE_NAME = "</script><b>evil</b>"
NO_GPU = "needs a CUDA device"
NO_GPM = "this GPU has no GPM counters (Hopper and later have)"
SCALE = 14


def bell(centre: float, width: float, elements: int, zeros: int = 0) -> ExponentHistogram:
    """Elements whose exponents lie in a bell around `centre`."""
    span = range(math.floor(centre - 4 * width), math.ceil(centre + 4 * width) + 1)
    weights = {e: math.exp(-(((e + 0.5 - centre) / width) ** 2) / 2) for e in span}
    whole = sum(weights.values())
    return ExponentHistogram.from_bins({e: round(elements * w / whole) for e, w in weights.items()}, zeros)


def table(
    name: str, kind: TensorKind, centre: float, width: float = 2.5, elements: int = 65536, **more: object
) -> TensorTable:
    histogram = more.pop("histogram", None) or bell(centre, width, elements * 20, elements)
    assert isinstance(histogram, ExponentHistogram)
    fields: dict[str, object] = {
        "module_type": "Linear",
        "dtype": "float32",
        "amp_dtype": "float16",
        "abs_max": 1.37 * 2.0**histogram.highest if histogram.counts else None,
        "abs_min": 1.02 * 2.0**histogram.lowest if histogram.counts else None,
        "source": "examples/gpt_tiny.py:31",
    }
    return TensorTable(name=name, kind=kind, elements=elements, steps=20, histogram=histogram, **(fields | more))  # type: ignore[arg-type] # `more` holds whatever field a sample wants different


def tables() -> tuple[TensorTable, ...]:
    kinds = TensorKind
    made = []
    for block in range(4):
        for i, part in enumerate(("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")):
            name, depth = f"blocks.{block}.{part}", block + i / 4
            made += [
                table(name, kinds.ACTIVATION, -1.5 + depth / 3, elements=2**20),
                table(name, kinds.ACTIVATION_GRADIENT, -17 - 0.8 * depth, 4.2, 2**20),
                table(f"{name}.weight", kinds.WEIGHT, -5.2, 1.6),
                table(f"{name}.weight", kinds.WEIGHT_GRADIENT, -15 - 1.2 * depth, 3.6),
                table(
                    f"{name}.weight",
                    kinds.WEIGHT_UPDATE,
                    -13.5,
                    1.2,
                    stagnant={"FP16": 0.05 + depth / 9, "BF16": 0.4 + depth / 10, "FP32": 0.0},
                    amp_dtype="float32",
                ),
            ]
    noise = ExponentHistogram.from_bins({-40: 300, -39: 900, -38: 700, -37: 90})
    made += [
        table("head", kinds.ACTIVATION, 11.5, 1.6, 2**18, source="examples/gpt_tiny.py:58"),
        table("norm", kinds.ACTIVATION, 0, module_type="LayerNorm", amp_dtype="float32"),
        table("blocks.0.attn.key.bias", kinds.WEIGHT_GRADIENT, 0, elements=128, histogram=noise, noise_level=True),
        table("mask", kinds.ACTIVATION, 0, elements=64, histogram=ExponentHistogram(zeros=1280), amp_dtype=None),
        table(HOSTILE_NAME, kinds.ACTIVATION, 3, elements=64, module_type="<i>Odd</i>", source=None),
    ]
    return tuple(made)


def curve(seen: tuple[TensorTable, ...]) -> tuple[ScalePoint, ...]:
    pooled = ExponentHistogram()
    for each in seen:
        if each.kind in (TensorKind.WEIGHT_GRADIENT, TensorKind.ACTIVATION_GRADIENT) and not each.noise_level:
            pooled += each.histogram
    points = []
    for k in range(0, 33):
        usage = pooled.usage(FP16, k)
        points.append(ScalePoint(k, usage.underflow, pooled.energy_lost(FP16, k), usage.overflow))
    return tuple(points)


def losses(seed: int, offset: float = 0.0, broken_from: int | None = None) -> tuple[float, ...]:
    values = []
    for step in range(1, 101):
        wobble = 0.09 * math.sin(step * (1.7 + seed / 3)) + 0.05 * math.sin(step * 0.61 + seed)
        values.append(1.9 + 2.5 * math.exp(-step / 22) + wobble + offset)
    if broken_from:
        values[broken_from - 1 :] = [math.nan] * (101 - broken_from)
    return tuple(values)


COSTS = ("peak_memory_bytes", "step_time_ms", "tensor_core", "energy_joules_per_sample")


def trials() -> tuple[Trial, ...]:
    unscaled = dict.fromkeys(
        ("skipped_steps", "final_log2_scale"), "does not apply: this arm trains without a loss scale"
    )
    fp32 = [
        Trial(
            "fp32", "FP32", False, seed, 100, losses(seed), {"accuracy": 0.912 + seed / 500},
            peak_memory_bytes=8_697_308_774, step_time_ms=48.2, step_time_iqr_ms=(47.9, 48.8), timed_steps=62,
            tensor_core={"any_tensor": 0.0, "sm": 0.81}, energy_joules_per_sample=0.412, not_measured=unscaled,
        )
        for seed in (0, 1, 2)
    ]  # fmt: skip
    fp16 = [
        Trial(
            "fp16", "FP16 autocast", False, seed, 100, losses(seed, 0.004), {"accuracy": 0.911 + seed / 500},
            skipped_steps=0, loss_scales_log2=(14.0,) * 100, final_log2_scale=14.0,
            peak_memory_bytes=5_583_457_484, step_time_ms=21.7, step_time_iqr_ms=(21.5, 22.1), timed_steps=138,
            tensor_core={"any_tensor": 0.318, "sm": 0.77}, energy_joules_per_sample=0.171,
        )
        for seed in (0, 1, 2)
    ]  # fmt: skip
    numerics_only = dict.fromkeys(COSTS, "only the numerics of this arm were run")
    bare = Trial(
        "fp16-unscaled", "FP16 autocast, no loss scale", False, 0, 100, losses(0, 0.35), {"accuracy": 0.744},
        not_measured=unscaled | numerics_only | {"tensor_core": NO_GPM},
    )  # fmt: skip
    broken = Trial(
        "fp16-pure", "FP16, no master weights, no loss scale", True, 0, 100, losses(0, 0.2, 42),
        not_measured=unscaled | dict.fromkeys(COSTS, NO_GPU) | {"metric": "the loss was not finite"},
    )  # fmt: skip
    return (*fp32, *fp16, bare, broken)


def comparisons() -> tuple[Comparison, ...]:
    noise = "half the spread between 3 FP32 seeds, the lower 95 % bound of it"
    loss, accuracy = (
        PairedTest(noise, True, 0.019, 0.0089, 0.173, None, 0.0865),
        PairedTest("2 % of FP32's value, the most there is", True, 0.006, 0.003, 0.002, None, 0.02),
    )
    lost = PairedTest(noise, False)
    few = PairedTest(noise, None, None, None, 0.173, 9, 0.0865)
    half, one = "mean loss of the second half", "one block an arm: no interval; 3 % is taken for noise"
    memory, time = ("peak_memory_bytes", "bytes"), ("step_time_ms", "ms a step")
    return (
        Comparison("loss", half, "fp32", "fp16", 1.93, 1.934, 0.004, (-0.011, 0.019), 0.05, 3, "equivalent", test=loss),
        Comparison(
            "accuracy", "metric", "fp32", "fp16", 0.914, 0.913, -0.001, (-0.006, 0.004), 0.01, 3, "equivalent",
            test=accuracy,
        ),
        Comparison(*memory, "fp32", "fp16", 8_697_308_774, 5_583_457_484, 0.642, None, 0.03, 1, "better", one, True),
        Comparison(*time, "fp32", "fp16", 48.2, 21.7, 0.45, None, 0.03, 1, "better", one, True),
        Comparison(
            "loss", half, "fp32", "fp16-unscaled", 1.93, 2.28, 0.35, None, 0.05, 1, "inconclusive", "one seed", test=few
        ),
        Comparison(*time, "fp32", "fp16-unscaled", None, None, None, None, None, 0, "not-measured", NO_GPU, True),
        Comparison(*time, "fp32", "fp16-pure", None, None, None, None, None, 0, "not-measured", NO_GPU, True),
        Comparison(
            "loss", half, "fp32", "fp16-pure", 1.93, None, None, None, 0.05, 1, "worse", "not finite", test=lost
        ),
    )  # fmt: skip


def bands() -> tuple[CurveBand, ...]:
    """FP16's, which is told apart late, and an arm of one seed, which has none."""
    steps = (1, 25, 50, 75, 100)
    mean, half = (0.0, 0.002, 0.003, 0.004, 0.004), (0.001, 0.002, 0.0025, 0.003, 0.003)
    low, high = (tuple(m + sign * h for m, h in zip(mean, half, strict=True)) for sign in (-1, 1))
    return (
        CurveBand("fp16", 3, steps, mean, low, high, 0.75, 10, 45),
        CurveBand("fp16-unscaled", 1, reason="a band over the steps takes 3 distinct seeds"),
        CurveBand("fp16-pure", 1, reason="a band over the steps takes 3 distinct seeds"),
    )


def controls() -> tuple[ControlOutcome, ...]:
    return (
        ControlOutcome("fp16-unscaled", None, "loss +0.35, margin 0.05, one seed"),
        ControlOutcome("fp16-pure", True, "loss: not finite"),
    )


def comparison(arm: str, quantity: str = "loss", **more: object) -> Comparison:
    """An equivalent loss, or a halved cost, of an arm; `more` replaces any field."""
    cost = quantity in COSTS
    fields: dict[str, object] = {
        "quantity": quantity, "unit": "", "baseline": "fp32", "candidate": arm, "baseline_value": 2.0,
        "candidate_value": 1.0 if cost else 2.5, "difference": 0.5, "interval": None if cost else (0.25, 0.75),
        "margin": 0.03 if cost else 1.0, "seeds": 3, "verdict": "better" if cost else "equivalent",
        "reason": "one block" if cost else None, "is_ratio": cost,
    }  # fmt: skip
    return Comparison(**(fields | more))  # type: ignore[arg-type] # `more` holds whatever field a sample wants different


def run_of(arm: str, seed: int = 0, **more: object) -> Trial:
    """A short run on a CPU without metric and without costs; `more` replaces any field."""
    missing = {"metric": "no evaluate", **dict.fromkeys(COSTS, NO_GPU)}
    missing |= dict.fromkeys(("skipped_steps", "final_log2_scale"), "does not apply: no loss scale")
    fields: dict[str, object] = {
        "arm": arm, "precision": arm.upper(), "emulated": False, "seed": seed, "steps": 4,
        "losses": (4.0, 3.0, 2.0, 1.0), "not_measured": missing,
    }  # fmt: skip
    return Trial(**(fields | more))  # type: ignore[arg-type] # as above


def partly_noise() -> TensorTable:
    """Four elements: one rounding noise, one that FP16 loses at scale 1, two that it holds."""
    counted = ExponentHistogram.from_bins({-40: 1, -27: 1, 0: 2})
    return table("qkv.bias", TensorKind.WEIGHT_GRADIENT, 0, elements=4, histogram=counted, noise_floor_log2=-30)


def findings() -> tuple[Finding, ...]:
    return (
        Finding(
            "MP201", "gradient-underflow", "warning", "blocks.3.mlp.fc2.weight",
            "37 % of the non-zero weight gradients are below 2^-25 and become zero in FP16 at scale 1.",
            {"underflow": 0.372, "energy_lost": 3.1e-5, "limit_log2": -25.0},
            "Scale the loss by at least 2^11; `torch.amp.GradScaler` with init_scale 2^14 does.",
            source="examples/gpt_tiny.py:31",
        ),
        Finding(
            "MP101", "activation-overflow", "error", "head",
            "The largest activation is 1.37 * 2^17, beyond what FP16 holds (65504).",
            {"abs_max": 179568.6, "share_overflowing": None},
            "Keep this module in FP32: wrap its forward in `torch.autocast('cuda', enabled=False)`.",
            "with torch.autocast('cuda', enabled=False):\n    logits = self.head(x.float())",
            "examples/gpt_tiny.py:58",
        ),
        Finding(
            "MP401", "dim-not-multiple-of-8", "info", "tokenizer",
            "The vocabulary has 50257 entries; padding it to 50264 lets Tensor Cores take the last product.",
            {"size": 50257.0}, "Pad the vocabulary to a multiple of 8.",
        ),
    )  # fmt: skip


def environment(gpu: str | None = "NVIDIA H100 80GB HBM3") -> Environment:
    return Environment(
        python="3.12.11", torch="2.13.0+cu130", mpdiag="0.1.0", platform="Linux x86_64", cpu_threads=16,
        cuda="13.0" if gpu else None, driver="580.65.06" if gpu else None, gpu=gpu,
        compute_capability="9.0" if gpu else None, fp32_precision={"matmul": "ieee", "conv": "tf32"},
    )  # fmt: skip


def target() -> TargetRecord:
    return TargetRecord(
        "gpt_tiny", "examples/gpt_tiny.py", 3_214_592, True, "AdamW(lr=0.0003)", 20, 64, "evaluate(model)", True,
        ("no build_optimizer: AdamW(lr=1e-3) is used",),
    )  # fmt: skip


def full() -> Diagnosis:
    """A scan that ran to its end on a GPU."""
    seen = tables()
    points = curve(seen)
    before, after = points[0], points[SCALE]
    binding = {
        "lower": ("blocks.3.mlp.fc2.weight (weight_gradient)",),
        "upper": ("blocks.0.attn.qkv (activation_gradient)", "the loss itself"),
    }
    scale = LossScaleAdvice(
        SCALE, "dynamic", 11, 14, binding,
        before.underflow, after.underflow, before.energy_lost, after.energy_lost,
        'scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14, growth_interval=2000)\n'
        'with torch.autocast("cuda", dtype=torch.float16):\n    loss = compute_loss(model, batch)\n'
        "scaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()",
        "2^14 loses least while the largest gradient keeps 3 powers of two of headroom.", 2000, points,
        0.5, EnergyLost("blocks.3.mlp.fc2.weight (weight_gradient)", 0.19, 0),
        EnergyLost("blocks.3.mlp.fc2.weight (weight_gradient)", 1e-9, 0),
    )  # fmt: skip
    return Diagnosis(
        created="2026-08-14T09:12:44+00:00",
        command="mpdiag scan examples/gpt_tiny.py --seeds 3",
        environment=environment(),
        target=target(),
        capture=Capture(
            "FP32", "cuda", 20, 0, True, SelfTest(True, 2, 0.0, 0.0), seen, losses(0)[:20], "float32",
            not_seen=("functional calls inside `blocks.*.attn` (scaled_dot_product_attention) have no module",),
        ),
        advice=Advice("FP16", scale, findings(), ("head",)),
        verification=Verification(
            trials(), comparisons(), "go-with-changes",
            "FP16 trains as well as FP32 within the margin, once `head` stays in FP32.",
            cut=("BF16 was not tried: the time budget of 60 s was used up",),
            train_with="fp16",
            curves=bands(),
            gradients=gradients(),
            controls=controls(),
        ),
        elapsed_seconds={"capture": 21.4, "verify": 58.9},
    )  # fmt: skip


def gradients() -> GradientCheck:
    """TF32 and BF16 near FP32, FP16 with its scale nearer, without one far off, and an arm that overflows."""
    made = GradientError("fp16", "FP16 autocast", 2.1e-5, 4.3e-4, 0.99999991, 0.0031, "head.weight", 9.7e-4)
    return GradientCheck(4, (
        GradientError("tf32", "FP32 with TF32 products", 1.9e-5, 4.0e-4, 0.99999992, 0.0029, "head.weight", 8.8e-4),
        made,
        GradientError("fp16-unscaled", "FP16 autocast, no loss scale", 2.1e-5, 1.0, None, 7.2, "blocks.0.qkv", 1.0),
        GradientError("bf16", "BF16 autocast", 1.6e-4, 0.0034, 0.9999942, 0.024, "head.weight", 0.0078),
        GradientError("fp16-plan", "FP16 autocast, 1 module(s) in FP32", reason="the gradient is not finite at 2^16"),
    ), None, 2.4e-7)  # fmt: skip


def on_gpu() -> Diagnosis:
    """The whole sample with everything that a scan on a GPU measures of the arms' costs."""
    from cost_samples import comparisons_of, full_costs, trials_with

    made, costs = full(), full_costs()
    assert made.verification is not None
    quality = tuple(c for c in made.verification.comparisons if not c.is_ratio)
    runs, ratios = trials_with(made.verification.trials, costs), comparisons_of(costs)
    return replace(
        made, verification=replace(made.verification, trials=runs, comparisons=(*quality, *ratios), costs=costs)
    )


def minimal() -> Diagnosis:
    """Ctrl-C after the capture, on a laptop."""
    return Diagnosis(
        created="2026-08-14T09:12:44+00:00",
        command="mpdiag scan model.py",
        environment=environment(gpu=None),
        target=TargetRecord("model", "model.py", 1200, True, "AdamW(lr=0.001)", 4, None, None, True),
        capture=Capture(
            "FP32", "cpu", 3, 7, None, SelfTest(None, 0, reason="the scan was interrupted"),
            (table("fc", TensorKind.ACTIVATION, 0, elements=64),),
        ),
        reason="stopped by Ctrl-C",
    )  # fmt: skip
