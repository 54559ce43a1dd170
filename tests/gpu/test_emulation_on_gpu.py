"""The emulated CUDA policy against the real one. `benchmarks/emulation.py` writes the same figures to reports/."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "emulation.py"
spec = importlib.util.spec_from_file_location("emulation_benchmark", PATH)
emulation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(emulation)


@pytest.mark.parametrize("kind", emulation.KINDS)
def test_the_emulated_policy_gives_every_tensor_the_type_it_has_on_a_gpu(kind, gpu):
    row = emulation.compare(kind)
    assert row["errors"] == [None, None]
    assert row["dtype_mismatches"] == []
    assert row["cast_mismatches"] == []
    assert row["loss_dtype"][0] == row["loss_dtype"][1]
    # the emulation may differ from the GPU by rounding: at most what FP16 and the other machine change together
    assert row["emulated_against_fp16"] <= 3 * (row["fp16_against_fp32"] + row["cpu_against_gpu_fp32"]) + 1e-4
