"""The zoo on a GPU: the same jobs, the same paper, the same witness; and a GradScaler that nothing waits for."""

import warnings

import pytest
import torch
from torch import nn

import zoo_samples as zoo
from mpdiag.capture.probe import Probe
from mpdiag.diagnosis import TensorKind

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_job_of_the_zoo_is_bit_equal_with_the_probe_and_counted_as_on_paper(name, gpu):
    run = zoo.probed(name, gpu)
    assert {key: table.histogram.total for key, table in run.tables.items()} == zoo.on_paper(name)
    assert (run.hooks_left, run.kept_alive, run.skipped) == (0, 0, zoo.ZOO[name].skipped)
    one, other = zoo.plain(name, gpu), zoo.plain(name, gpu)
    if one.losses != other.losses or zoo.differing(one, other):
        pytest.skip(f"{name} differs from itself: no bit can be compared")
    assert run.losses == one.losses
    assert zoo.differing(run, one) == []


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_tables_are_those_of_the_witness(name, gpu):
    run, (alone, witness) = zoo.probed(name, gpu), zoo.recorded(name, gpu)
    if alone.losses != run.losses or zoo.differing(alone, run):
        pytest.skip(f"{name} is not bit-equal with a witness in its way: no histogram can be compared")
    assert zoo.wrong_fields(name, run, witness) == {}


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_fused_optimizer_under_a_grad_scaler_is_watched_without_a_synchronization(make, gpu):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).to(gpu)
    optimizer = make(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)
    probe = Probe(model, [optimizer], gpu, scaler=scaler)
    x = torch.randn(32, 64, device=gpu)

    def iteration(factor):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = model(x).float().pow(2).mean()
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    for index, factor in enumerate((1.0, 2.0**100, 1.0)):
        torch.cuda.set_sync_debug_mode("error" if index else "default")
        try:
            iteration(factor)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        probe.step_done()
    found = {(table.kind, table.name): table for table in probe.tables()}
    assert probe.skipped_steps == 1
    assert found[TensorKind.WEIGHT_UPDATE, "0.weight"].steps == 2
    assert found[TensorKind.WEIGHT_GRADIENT, "0.weight"].steps == 3
    probe.remove()
