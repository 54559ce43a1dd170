"""The hash of a first batch: equal for equal data whichever CPU drew it, another for other data; never an error."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.errors import UsageError
from mpdiag.target.batches import batch_dim_of, batch_notes, sample_axis, samples_in
from mpdiag.target.fingerprint import batch_hash


def drawn(seed):
    torch.manual_seed(seed)
    return torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,))


@given(st.integers(0, 10**6))
def test_the_same_batch_has_the_same_hash_and_another_draw_another(seed):
    assert batch_hash(drawn(seed)) == batch_hash(drawn(seed))
    assert batch_hash(drawn(seed)) != batch_hash(drawn(seed + 1))


def test_another_order_of_samples_is_another_batch():
    x, y = drawn(0)
    assert batch_hash((x.flip(0), y)) != batch_hash((x, y))
    assert batch_hash((x, y.flip(0))) != batch_hash((x, y))


@pytest.mark.parametrize("seed", range(20))
def test_the_last_bit_of_a_float_does_not_count_for_kinds_of_cpu_differ_in_it(seed):
    x, y = drawn(seed)
    noisy = torch.nextafter(x, torch.where(torch.rand_like(x) < 0.5, torch.inf, -torch.inf))
    assert not torch.equal(noisy, x)
    assert batch_hash((noisy, y)) == batch_hash((x, y))


def test_a_single_other_label_counts():
    x, y = drawn(0)
    other = y.clone()
    other[7] += 1
    assert batch_hash((x, other)) != batch_hash((x, y))


@pytest.mark.parametrize("elements", [2**24 + 3, 3 * 2**24 + 1])
def test_a_batch_of_more_numbers_than_float32_counts_has_a_hash(elements):
    large = torch.zeros(1).expand(elements).clone()
    large[-1] = 1.0
    assert batch_hash(large) != batch_hash(torch.zeros(elements))


def test_shape_and_type_count():
    x = torch.arange(6)
    others = (x.reshape(2, 3), x.int(), x.float(), x.double(), x.numpy(), [0, 1, 2, 3, 4, 5])
    assert len({batch_hash(each) for each in (x, *others)}) == 7


@pytest.mark.parametrize(
    "batch",
    [
        torch.tensor([]), torch.tensor(1.0), torch.zeros(4), torch.tensor([float("nan"), float("inf"), -1.0]),
        torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.bfloat16), torch.ones(3).to_sparse(),
        torch.tensor([True, False]), torch.ones(4, 2)[:, 0], torch.ones(3, requires_grad=True),
        torch.ones(8).to(torch.float8_e4m3fn), {"text": ["a", "b"], "n": 3}, object(), None, np.array(["a"]),
        np.broadcast_to(np.float32(1.0), (3,)),
    ],
    ids=lambda batch: type(batch).__name__,
)  # fmt: skip
def test_whatever_a_batch_is_it_has_a_hash(batch):
    assert len(batch_hash(batch)) == 16
    assert batch_hash(batch) == batch_hash(batch)


# which dimension counts samples


def test_the_batch_size_is_that_of_the_dimension_the_target_says():
    x, y = torch.ones(35, 8, 4), torch.ones(8)
    assert (samples_in((x, y)), samples_in((x, y), 1), samples_in((y, x), 1)) == (35, 8, 8)
    assert samples_in((y,), 1) is None


def test_a_tensor_of_too_few_dimensions_counts_samples_in_its_first():
    assert (sample_axis((35, 8, 4), 8, 1), sample_axis((8,), 8, 1), sample_axis((8, 35), 8, 1)) == (1, 0, None)
    assert (sample_axis((), 8), sample_axis((8, 4), 8), sample_axis((4, 8), 8)) == (None, 0, None)


def test_tensors_that_disagree_are_said_unless_the_target_says_which_dimension_counts():
    batch = (torch.ones(35, 8, 4), torch.ones(8), torch.tensor(1.0))
    told = batch_notes(batch, None)
    assert len(told) == 1
    assert "(35, 8): 35 was taken as the batch size" in told[0]
    assert "BATCH_DIM = 1" in told[0]
    assert batch_notes(batch, 1) == batch_notes(batch, 0) == ()
    assert batch_notes((torch.ones(8, 4), torch.ones(8)), None) == ()


@pytest.mark.parametrize("value", ["1", 1.0, True, -1, 8, 10**5000, [1]], ids=lambda value: type(value).__name__)
def test_a_batch_dim_that_is_no_dimension_is_refused(value):
    with pytest.raises(UsageError) as raised:
        batch_dim_of({"BATCH_DIM": value}, "model.py")
    assert raised.value.slug == "target-setting"
    assert "BATCH_DIM = 1" in raised.value.hint
    assert len(raised.value.message) < 100


TIME_FIRST = """
import torch
BATCH_DIM = 1
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(35, 8, 4), torch.randn(8)) for _ in range(2)]
def compute_loss(model, batch): return ((model(batch[0]).mean((0, 2)) - batch[1]) ** 2).mean()
"""


def test_a_target_that_says_so_is_recorded_halved_and_sent_to_children_with_it(tmp_path):
    from mpdiag.measure.again import open_again, request_for
    from mpdiag.measure.resize import halved
    from mpdiag.measure.steady import steady_run
    from mpdiag.target import load_job
    from mpdiag.target.record import target_record
    from mpdiag.training.precision import FP32_IEEE

    path = tmp_path / "model.py"
    path.write_text(TIME_FIRST)
    job, cpu = load_job(str(path)), torch.device("cpu")
    start = job.start(0, 1)
    assert target_record(job, start).samples_per_step == 8
    assert not any("BATCH_DIM" in note for note in target_record(job, start).notes)
    assert [tuple(each.shape) for each in halved(start).batches[0]] == [(35, 4, 4), (4,)]
    with steady_run(job, start, FP32_IEEE, cpu, 1) as run:
        assert run.samples == 8
    again = open_again(request_for(job, FP32_IEEE, 0, cpu, 20))
    assert [tuple(each.shape) for each in again.start.batches[0]] == [(35, 20, 4), (20,)]

    path.write_text(TIME_FIRST.replace("BATCH_DIM = 1\n", ""))
    job = load_job(str(path))
    record = target_record(job, job.start(0, 1))
    assert record.samples_per_step == 35
    assert any("BATCH_DIM = 1" in note for note in record.notes)
