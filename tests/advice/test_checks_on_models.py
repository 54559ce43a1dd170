"""Real models scanned by the real capture: a planted fault is found, and a healthy model has no error or warning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from capture_samples import UPDATE
from fault_samples import FAULTS, PREAMBLE
from mpdiag.api import ScanOptions, scan
from mpdiag.diagnosis import Advice, Diagnosis

TARGETS = Path(__file__).parents[1] / "targets"


# real models, through the real capture


def captured(path: Path, steps: int = 3) -> Diagnosis:
    return scan(str(path), ScanOptions(steps=steps, device="cpu", verify=False))


@pytest.fixture(scope="module")
def diagnose(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Diagnosis]:
    """The diagnosis of a planted fault, made once."""
    made: dict[str, Diagnosis] = {}

    def of(name: str) -> Diagnosis:
        if name not in made:
            path = tmp_path_factory.mktemp("fault") / f"{name.replace(' ', '_').replace('-', '_')}.py"
            path.write_text(PREAMBLE + (FAULTS[name].source if name in FAULTS else ""))
            made[name] = captured(path)
        return made[name]

    return of


def advice_of(diagnosis: Diagnosis) -> Advice:
    assert diagnosis.advice is not None
    return diagnosis.advice


@pytest.mark.parametrize(
    ("name", "formats"), [("float16 weights", {"FP16"}), ("bfloat16 weights", {"BF16"}), ("no fault", {"FP16", "BF16"})]
)
def test_updates_of_16_bit_weights_have_a_stagnant_share_of_their_own_format_only(diagnose, name, formats):
    seen = diagnose(name).capture
    assert seen is not None
    shares = [t.stagnant for t in seen.of_kind(UPDATE)]
    assert len(shares) == 4
    assert [set(share or ()) for share in shares] == [formats] * 4
    assert all(0 <= value <= 1 for share in shares for value in (share or {}).values())


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_in_a_real_training_run(diagnose, name):
    fault, findings = FAULTS[name], advice_of(diagnose(name)).findings
    hits = [f for f in findings if f.code == fault.code]
    assert hits, [f"{f.code} {f.message}" for f in findings]
    assert hits[0].severity in fault.severities
    assert fault.subject is None or hits[0].subject == fault.subject


def test_the_same_job_without_a_fault_has_no_finding_but_information(diagnose):
    findings = advice_of(diagnose("no fault")).findings
    assert [f.code for f in findings if f.severity != "info"] == []


def test_the_module_whose_output_overflows_is_kept_in_fp32(diagnose):
    assert advice_of(diagnose("large activation")).keep_fp32 == ("body.large",)


def test_a_finding_points_at_the_users_line(diagnose):
    finding = next(f for f in advice_of(diagnose("large activation")).findings if f.code == "MP101")
    path, line = finding.source.rsplit(":", 1)
    assert 'self.body["large"](x)' in Path(path).read_text().splitlines()[int(line) - 1]


def test_the_norm_that_overflows_inside_is_kept_in_fp32(diagnose):
    assert advice_of(diagnose("hand-written norm")).keep_fp32 == ("norm",)


def test_the_conflict_names_both_branches(diagnose):
    finding = next(f for f in advice_of(diagnose("two ranges")).findings if f.code == "MP204")
    need, bear = finding.message.split(", and 2^")
    assert "small" in need
    assert "large" not in need
    assert "large" in bear
    assert "small" not in bear


CNN = """
def build_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    )

def train_batches():
    while True:
        yield torch.randn(16, 3, 16, 16), torch.randint(5, (16,))

def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
"""
MLP = """
def build_model():
    return nn.Sequential(
        nn.Linear(8, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4)
    )
"""
HEALTHY_MODELS = {"cnn": CNN, "mlp": MLP, "encoder": None, "lstm": None, "unet": None}


@pytest.mark.parametrize("name", HEALTHY_MODELS)
def test_a_healthy_model_has_no_error_and_no_warning_but_what_a_loss_scale_cures(tmp_path, name):
    source, path = HEALTHY_MODELS[name], TARGETS / f"{name}.py"
    if source is not None:
        path = tmp_path / f"{name}.py"
        path.write_text(PREAMBLE + source)
    diagnosis = captured(path)
    advice = advice_of(diagnosis)
    assert [(f.code, f.message) for f in advice.findings if f.severity != "info"] == []
    assert advice.keep_fp32 == ()
    assert advice.loss_scale.log2_scale is not None
    assert diagnosis.capture is not None
    assert diagnosis.capture.unchanged is True
