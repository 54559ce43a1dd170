"""Kernel evidence with every field filled, for tests of what is saved and drawn."""

from __future__ import annotations

from mpdiag.costs.kernels import ArmKernels, Flops, KernelTime, Ladder, LayerUse, Level, NamedKernel, WhyNot

ODD = WhyNot("odd-dimensions", "7x9x8 takes 9 us alone, 3 us as 8x16x8", "pad `vocab`", 0.5, "measured")
UNTIMED = WhyNot("few-channels", "3 input channels", "nothing", None, "not measured")

TIME = KernelTime(
    steps=3,
    kernels=120.0,
    total_ms=10.0,
    by_class={"yes": 0.7, "no": 0.2, "ambiguous": 0.0, "unknown": 0.1},
    by_dtype={"float16": 0.8, "float32": 0.2},
    tensor_by_dtype={"float16": 0.7},
    matrix_share=0.75,
    cast_share=0.05,
    transpose_share=0.03,
    optimizer_share=0.1,
    memcpy_ms=0.1,
    median_kernel_us=30.0,
    busy_ms=9.0,
    step_ms=12.0,
    step_traced=False,
    busy_share=0.75,
    top=(NamedKernel("nvjet_<b>", "aten::mm", "float16", "yes", 4.0, 7.0),),
    unknown=(NamedKernel("their_kernel", None, None, "unknown", 1.0, 1.0),),
)
LAYERS = (
    LayerUse("blocks.0.</script>", "Linear", 1.0, 2.0, 0.3, "float16", "yes", 10**9, 350.0, 0.58, True, (ODD,)),
    LayerUse("stem", "Conv2d", 0.5, 0.5, 0.1, "float16", "no", None, None, None, None, (UNTIMED,)),
    LayerUse("norm", "LayerNorm", 0.2, 0.2, 0.04, "float32", "no", None, None, None, None,
             (WhyNot("no-product", "it multiplies no matrices", "leave it", 0.0, "formula"),)),
)  # fmt: skip
LADDER = Ladder(
    "E4",
    True,
    "70.0% of GPU kernel time in kernels known as tensor-core",
    (Level("E1", "hardware counters by type", None, "refused"), Level("E4", "kernel names", True, "70.0%")),
    ("E4 says yes and E3 <reads> nothing",),
)
FP16 = ArmKernels(
    "FP16", "FP16", TIME, LAYERS, (WhyNot("casts", "casts take 5%", "one region", 0.5, "measured"),),
    tflops_per_s=120.0, of_ceiling=0.2, ladder=LADDER,
)  # fmt: skip
FLOPS = Flops(
    10**12, 2 * 10**12, 10**9, {"": (1, 2)}, {"aten.mm": 3}, ("recurrent layers: 5",), ("a note",), ("my.op",)
)

UNTRACED = ArmKernels(
    "BF16", "BF16", None, reason="needs a CUDA GPU", layers_reason="needs a CUDA GPU", throughput_reason="no ceiling"
)
