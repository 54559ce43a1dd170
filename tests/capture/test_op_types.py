"""The type a result takes under FP16 autocast where torch itself names it, or leaves it to the operand."""

import torch
import torch.nn.functional as F

from mpdiag.operations import OpRole
from op_samples import of, one

ROWS = torch.tensor([[[8.0, 0.0], [0.0, 16.0]]])
LABELS = torch.tensor([0, 1])


def test_inside_cross_entropy_log_softmax_has_the_type_of_its_logits():
    # F.cross_entropy hands log_softmax the logits' own type, which autocast then leaves: FP16 on a GPU too
    tables = of(lambda h: F.cross_entropy(h[0], LABELS).reshape(1), ROWS)
    assert one(tables, op="log_softmax", role=OpRole.OUTPUT).amp_dtype == "float16"


def test_called_by_itself_log_softmax_is_in_fp32():
    tables = of(lambda h: F.log_softmax(h[0], -1), ROWS)
    assert one(tables, op="log_softmax", role=OpRole.OUTPUT).amp_dtype == "float32"
