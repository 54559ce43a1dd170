"""The jobs of benchmarks/paper.py: which example, what the paper says of its kind, the learning rate late in training.

The late rates were chosen before any of the runs, each for the reason on its line: small enough that an FP16 weight
may not move, and a gradient may be below what FP16 holds, as it was in the paper's failures.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperJob:
    """late_rate: of every optimizer after the training. fp32, mixed, unscaled: the paper's own words or figures.

    unscaled_worse: what the paper says of mixed precision without a loss scale on this kind of job; None: nothing.
    late_steps, late_seeds: of each arm of the late scan; a step's time of five arms and a run's building were taken
    from earlier runs on an H100, so that they fit into late_seconds. before_seconds: what a scan takes before its time
    budget begins (start, text, self-test, capture), by the same runs.
    init_seconds, train_seconds, late_seconds: the first scan's time budget, the training's, the late scan's budget.
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
    late_steps: int = 150
    late_seeds: int = 5  # what TOST needs for a firm verdict (mpdiag/settings.py)
    before_seconds: float = 20.0
    init_seconds: float = 135.0
    train_seconds: float = 60.0
    late_seconds: float = 130.0
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
        late_steps=200, train_seconds=30.0,  # longer, it knows its images by heart and the loss is nearly zero
    ),
    PaperJob(
        "ssd_detector", "ssd_detector",
        1e-5, "the last rate of SSD's own schedule: 1e-3, 1e-4, 1e-5",
        "76.9 % mAP", "77.1 % (scale 8)", "diverges", "Multibox SSD, Table 2 [read, secondary]", True,
        before_seconds=25.0,
    ),
    PaperJob(
        "lstm_lm", "lstm_lm",
        0.02, "a hundredth of the first rate, where annealing a language model ends",
        "no figure quoted", "matches FP32 (scale 128)", "diverges after about 300,000 iterations", _BIG_LSTM, True,
        late_steps=200, train_seconds=45.0,
    ),
    PaperJob(
        "lstm_lm_tiny", "lstm_lm",
        0.02 / 1e-4, "the rate of lstm_lm, divided by the weight of the loss: in FP32 the same training",
        "no figure quoted", "matches FP32 (scale 128)", "diverges after about 300,000 iterations", _BIG_LSTM, True,
        late_steps=200, train_seconds=45.0, from_initialisation=False, environment={"LOSS_WEIGHT": "1e-4"},
        note="made to have tiny gradients: the loss is weighted by 1e-4 and the learning rate divided by it",
    ),
    PaperJob(
        "dcgan", "dcgan",
        2e-4, "a DCGAN's recipe never lowers its rate",
        "faces", "of comparable quality", "the same runs: none was scaled", "DCGAN on CelebA [read, secondary]",
        False, late_steps=60, late_seeds=10,  # at its full rate two runs part soon: only more seeds decide it
        train_seconds=30.0, late_seconds=110.0,
    ),
    PaperJob(
        "gpt_code", "gpt_code",
        3e-5, "a tenth of the peak, where a GPT's cosine schedule ends", *_NONE, None,
        late_steps=100, before_seconds=45.0, init_seconds=220.0, train_seconds=75.0, late_seconds=190.0,
    ),
    PaperJob(
        "bert_mlm", "bert_mlm",
        1e-5, "a thirtieth of the peak, in the last steps of BERT's linear decay", *_NONE, None,
    ),
    PaperJob(
        "t5_code", "t5_code",
        1e-5, "a thirtieth of the peak, as late in an inverse-square-root schedule",
        "no figure quoted", "matches FP32, with a loss scale", "slightly worse",
        "translation by LSTMs, the nearest kind [read, secondary]", True,
        late_steps=100, before_seconds=25.0, init_seconds=150.0, train_seconds=75.0, late_seconds=190.0,
    ),
)  # fmt: skip

JOBS = {job.name: job for job in _ALL}
