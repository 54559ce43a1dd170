"""The jobs of the zoo, each with what its tables must hold, worked out by hand on paper."""

from __future__ import annotations

import dataclasses

from mpdiag.diagnosis import TensorKind

STEPS = 3
A, AG = TensorKind.ACTIVATION, TensorKind.ACTIVATION_GRADIENT
W, WG, WU = TensorKind.WEIGHT, TensorKind.WEIGHT_GRADIENT, TensorKind.WEIGHT_UPDATE
Key = tuple[TensorKind, str]


@dataclasses.dataclass(frozen=True)
class Paper:
    """What a job's tables must hold, worked out by hand: elements of one iteration.

    activations: by module. gradients: those of activations where they differ. backwards: how many times an
    iteration brings every trained parameter its gradient; weight_gradients: where a parameter differs.
    """

    activations: dict[str, int]
    gradients: dict[str, int] = dataclasses.field(default_factory=dict)
    backwards: int = 1
    weight_gradients: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    not_seen: tuple[str, ...] = ()


def mlp(batch: int, hidden: int, out: int, calls: int = 1) -> dict[str, int]:
    return {"0": calls * batch * hidden, "1": calls * batch * hidden, "2": calls * batch * out}


INSIDE_THE_TEACHER = tuple(
    f"teacher.layers.{i}.{name}"
    for i in range(2)
    for name in ("self_attn", "self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
)
OUTPUTS = {f"heads.{form}_head": 2 * 5 * 2 for form in ("tuple", "named", "dict", "dataclass")}

TARGETS = {
    # dropout and the last ReLU write into their input: the same tensor, but a new value
    "in_place": Paper({"first": 40, "second": 40, "drop": 40, "relu": 40}),
    # three calls, all under the first name
    "reused": Paper({"block.0": 3 * 12, "block.1": 3 * 12}),
    # 4 rows of 6 codes
    "tied": Paper({"embed": 24 * 8, "mix": 24 * 8, "head": 24 * 16}),
    # the look-alike and the lists hold a scalar beside the two halves
    "outputs": Paper({"body": 20, **OUTPUTS, "heads.model_head": 21, "heads.lists_head": 21}),
    # 10 of 15 steps are real, two directions of 4; h and c are 2 x 3 x 4 each, and nothing depends on h
    "packed_lstm": Paper({"lstm": 10 * 8 + 24 + 24, "head": 30}, {"lstm": 10 * 8 + 24}),
    # the second one's weights: 2 batches of 5 x 3
    "attention": Paper({"own": 80, "norm": 80, "across": 80 + 30}, not_seen=("own.out_proj", "across.out_proj")),
    # the fast path runs a whole layer in one call: nothing inside it is called
    "teacher": Paper(
        {"teacher.layers.0": 336, "teacher.layers.1": 336, "student.0": 672, "student.1": 672, "student.2": 336},
        {"teacher.layers.0": 0, "teacher.layers.1": 0},
        not_seen=INSIDE_THE_TEACHER,
    ),
    # 16 of 21 positions are real; the padding returns, as zeros, when the encoder is left
    "nested_teacher": Paper(
        {
            "teacher.layers.0": 16 * 16, "teacher.layers.1": 16 * 16, "teacher": 21 * 16,
            "student.0": 672, "student.1": 672, "student.2": 336,
        },
        {"teacher.layers.0": 0, "teacher.layers.1": 0, "teacher": 0},
        not_seen=INSIDE_THE_TEACHER,
    ),
    # a real transform of 8 has 5 complex numbers, of two parts each
    "fourier": Paper({"lift": 24, "spectrum": 30, "filter": 30, "Network": 24}, weight_gradients={"filter.weight": 10}),
    # gradients are stored for the 3 different codes only
    "sparse": Paper(
        {"embed": 24, "bag": 8, "head": 2}, weight_gradients={"embed.weight": 12, "bag.weight": 12}
    ),
    "custom_function": Paper({"0": 30, "1": 30, "2": 30, "3": 10}),
    # recomputation is no second forward pass
    "checkpointed": Paper(
        {
            "stem": 48, "old.0": 48, "old.1": 48, "old.2": 48, "new.0": 48, "new.1": 48, "new.2": 48, "head": 12,
        }
    ),
    # the slope's own backward comes first, then the loss's
    "penalty": Paper(mlp(6, 8, 1), mlp(6, 8, 1, calls=2)),
    "frozen": Paper(
        {"backbone.0": 256, "backbone.1": 256, "backbone.2": 256, "norm": 16, "head": 12, "Network": 12},
        {"backbone.0": 0, "backbone.1": 0, "backbone.2": 0},
        weight_gradients={"spare.weight": 0, "spare.bias": 0},
        not_seen=("spare",),
    ),
    "empty": Paper(mlp(5, 4, 2)),
    "channels_last": Paper({"conv": 288, "norm": 288, "pool": 72, "head": 36}),
    # a weight computed by a module is that module's output; weight norm keeps its two parts as parameters
    "parametrized": Paper(
        {
            "0": 20, "0.parametrizations.weight.0": 12, "1": 20, "1.parametrizations.weight.0": 16,
            "2": 20, "2.parametrizations.weight.0": 16,
        }
    ),
    "mixed_dtypes": Paper({"stem": 40, "body": 40, "head": 10}),
    "own_autocast": Paper({"body": 40, "norm": 40, "head": 10}),
    "fused_adamw": Paper(mlp(5, 8, 2)),
    "fused_sgd": Paper(mlp(5, 8, 2)),
    "foreach_adam": Paper(mlp(5, 8, 2)),
}  # fmt: skip

LOOPS = {
    "accumulation": Paper(mlp(3, 8, 1, calls=4), backwards=4),
    "clipping": Paper(mlp(5, 8, 2)),
    "own_gradients": Paper(mlp(5, 8, 1)),
    # the inner step's backward, then the outer one through both passes
    "meta_learning": Paper(mlp(5, 6, 1, calls=2), mlp(5, 6, 1, calls=3), backwards=2),
    "scaler": Paper(mlp(5, 8, 2), skipped=1),
    "scaler_fused": Paper(mlp(5, 8, 2), skipped=1),
    "scaler_clipped": Paper(mlp(5, 8, 2, calls=2), backwards=2),
    # the student is called twice; its copies are no part of it
    "ema": Paper({"0": 2 * 40, "1": 2 * 40, "2": 2 * 10}),
    "saving": Paper(mlp(5, 4, 1)),
    # both losses reach the body, each its own head
    "two_optimizers": Paper(
        {"body": 40, "left": 5, "right": 5},
        {"body": 80, "left": 5, "right": 5},
        weight_gradients={"body.weight": 2 * 32, "body.bias": 2 * 8},
    ),
    "closure": Paper(mlp(8, 4, 1, calls=4), backwards=4),
    # a full backward hook makes the container's output another tensor than its last child's
    "user_hooks": Paper({**mlp(5, 8, 1), "Sequential": 5}),
    # a compiled graph takes no hooks: parameters and optimizers are still watched
    "compiled_first": Paper({}, not_seen=("0", "2")),
    "compiled_later": Paper({}, not_seen=("0", "2")),
    "compiled_and_called": Paper({}, not_seen=("0", "2")),
}
ZOO = {**TARGETS, **LOOPS}
EITHER_WAY = {"user_hooks": "1"}
"""The module whose output a hook of the user's replaces: the probe may see what was computed or what came of it."""
