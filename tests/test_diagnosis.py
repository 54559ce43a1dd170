"""The saved records; their JSON is in test_saved.py."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

from mpdiag.diagnosis import Capture, SelfTest, TensorKind, TensorTable
from mpdiag.histogram import ExponentHistogram

TABLE = TensorTable(
    name="fc.weight",
    module_type="Linear",
    kind=TensorKind.WEIGHT_UPDATE,
    dtype="float32",
    elements=12,
    steps=3,
    histogram=ExponentHistogram(-30, (1, 0, 35), zeros=2, infs=1, nans=4),
)


def test_a_kinds_value_is_its_plain_name():
    assert [kind.value for kind in TensorKind] == [
        "activation",
        "activation_gradient",
        "weight",
        "weight_gradient",
        "weight_update",
    ]


def test_of_kind_keeps_the_order_captured():
    a, b, c = (
        dataclasses.replace(TABLE, name=name, kind=kind)
        for name, kind in (("a", TensorKind.WEIGHT), ("b", TensorKind.ACTIVATION), ("c", TensorKind.WEIGHT))
    )
    capture = Capture("FP32", "cpu", 3, 0, None, SelfTest(None, 0), (a, b, c))
    assert capture.of_kind(TensorKind.WEIGHT) == (a, c)
    assert capture.of_kind(TensorKind.ACTIVATION, TensorKind.WEIGHT) == (a, b, c)
    assert capture.of_kind(TensorKind.WEIGHT_GRADIENT) == ()


def test_the_signal_is_what_lies_above_the_noise_floor():
    assert TABLE.signal == TABLE.histogram
    assert dataclasses.replace(TABLE, noise_floor_log2=-29).signal.bins == {-28: 35}


# the house rule


def test_importing_the_records_imports_no_torch_nor_numpy():
    script = "import sys, mpdiag.diagnosis; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_import_check_can_fail():
    script = "import sys, mpdiag.diagnosis, numpy; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 1
