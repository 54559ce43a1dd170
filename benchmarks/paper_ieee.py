"""mpdiag's own command line where FP32 is FP32, for the scans of benchmarks/paper.py.

    python benchmarks/paper_ieee.py scan examples/gpt_code.py ...

FP32 means IEEE FP32 here, as in the paper, while torch alone computes convolutions and RNNs in TF32. This is set before
mpdiag starts, as a job's file could do, so the scan finds no other FP32 and needs no arm "as configured".
"""

from __future__ import annotations

import sys

NOTE = "FP32 is IEEE FP32 by benchmarks/paper_ieee.py, which set it before the scan; the job itself leaves it to torch"


def main() -> None:
    import torch

    cudnn = torch.backends.cudnn
    for part in (torch.backends.cuda.matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)):
        if part is not None:
            part.fp32_precision = "ieee"

    from mpdiag.cli.main import main as mpdiag

    sys.argv[0] = "mpdiag"
    mpdiag()


if __name__ == "__main__":
    main()
