"""The jobs of benchmarks/paper.py: which example, what the paper says of its kind, the learning rate late in training.

The late rates were chosen before any of the runs, each for the reason on its line: small enough that an FP16 weight
may not move, and a gradient may be below what FP16 holds, as it was in the paper's failures.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperJob:
    """late_rate: of every optimizer after the training. fp32, mixed, unscaled: the paper's own words or figures.
    allowance: of the time, in units of the command's --seconds.

    unscaled_worse: what the paper says of mixed precision without a loss scale on this kind of job; None: nothing.
    """

    name: str
    example: str
    late_rate: float
    why_late: str
    fp32: str
    mixed: str
    unscaled: str
    source: str
    unscaled_worse: bool | None
    allowance: float = 1.0
    from_initialisation: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    note: str = ""


_BIG_LSTM = "bigLSTM on the 1B-word benchmark [read]"
_NONE = ("not in the paper", "not in the paper", "not in the paper", "none: it has no transformer")

_ALL = (
    PaperJob(
        "resnet_images", "resnet_images",
        1e-3, "0.1 after two drops by ten, as in the last third of a ResNet's schedule",
        "75.92 % top-1", "76.04 %", "the same runs: none was scaled", "ResNet-50, Table 1 [read]", False,
    ),
    PaperJob(
        "ssd_detector", "ssd_detector",
        1e-5, "the last rate of SSD's own schedule: 1e-3, 1e-4, 1e-5",
        "76.9 % mAP", "77.1 % (scale 8)", "diverges", "Multibox SSD, Table 2 [read, secondary]", True,
    ),
    PaperJob(
        "lstm_lm", "lstm_lm",
        0.02, "a hundredth of the first rate, where annealing a language model ends",
        "no figure quoted", "matches FP32 (scale 128)", "diverges after about 300,000 iterations", _BIG_LSTM, True,
    ),
    PaperJob(
        "lstm_lm_tiny", "lstm_lm",
        0.02 / 1e-4, "the rate of lstm_lm, divided by the weight of the loss: in FP32 the same training",
        "no figure quoted", "matches FP32 (scale 128)", "diverges after about 300,000 iterations", _BIG_LSTM, True,
        allowance=0.8, from_initialisation=False, environment={"LOSS_WEIGHT": "1e-4"},
        note="made to have tiny gradients: the loss is weighted by 1e-4 and the learning rate divided by it",
    ),
    PaperJob(
        "dcgan", "dcgan",
        2e-4, "a DCGAN's recipe never lowers its rate",
        "faces", "of comparable quality", "the same runs: none was scaled", "DCGAN on CelebA [read, secondary]",
        False, allowance=0.7,
    ),
    PaperJob(
        "gpt_code", "gpt_code",
        3e-5, "a tenth of the peak, where a GPT's cosine schedule ends", *_NONE, None,
        allowance=1.3,  # every run builds 110 million parameters anew
    ),
    PaperJob(
        "bert_mlm", "bert_mlm",
        1e-5, "a thirtieth of the peak, in the last steps of BERT's linear decay", *_NONE, None,
        allowance=0.8,
    ),
    PaperJob(
        "t5_code", "t5_code",
        1e-5, "a thirtieth of the peak, as late in an inverse-square-root schedule",
        "no figure quoted", "matches FP32, with a loss scale", "slightly worse",
        "translation by LSTMs, the nearest kind [read, secondary]", True, allowance=0.8,
    ),
)  # fmt: skip

JOBS = {job.name: job for job in _ALL}
