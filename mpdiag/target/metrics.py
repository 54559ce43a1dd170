"""What a target says of its metric: how to compute it, which way is better, and what counts as equal."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mpdiag.errors import UsageError, safe_text
from mpdiag.target import contract

LOSS, METRIC_LOSS = "loss", "metric loss"
"""The training loss, and what a metric is called that the user named "loss"."""

TAKEN = ("step_time_ms", "peak_memory_bytes", "energy_joules_per_sample")  # quantities that mpdiag measures itself
EVERY = "metric"  # a bare number's name; in MARGIN it is for every metric

_ARRAYS = (torch.Tensor, np.ndarray, np.generic)

NO_METRIC = "evaluate gave no metric"
_LOWER = frozenset(
    "loss losses perplexity ppl error errors err mse mae rmse wer cer fid distance nll bpc bpb bits ce bce xent "
    "crossentropy logloss kl kld divergence mape smape wape msle rmsle nrmse medae fpr fnr far frr eer hter false miss "
    "misses brier ece mce lpips ter der epe ade fde mpjpe regret residual residuals hamming chamfer hausdorff emd "
    "wasserstein mmd kid fvd fad latency violation violations failure failures mistakes drop gap decrease decline "
    "degradation anomaly".split()
)  # the usual names of what is minimised
_HIGHER = frozenset(
    "accuracy acc auc auroc auprc roc map miou iou giou ap f fscore fbeta precision recall sensitivity specificity tpr "
    "tnr true bleu sacrebleu chrf rouge meteor cider comet bertscore dice jaccard psnr ssim snr sdr pesq stoi r "
    "pearson spearman corr correlation kappa mcc ndcg mrr hit hits top em exact correct match pass reward return "
    "returns win wins winrate success likelihood elbo nmi ari silhouette purity similarity score".split()
)  # ... and of what is maximised, f and r being f1 and r2; beside a word of the others it counts for nothing: dice_loss
_NEGATED = ("neg", "negative")  # as the first word: neg_mean_squared_error (scikit-learn), negative_log_likelihood
_UNDONE = frozenset(("free", "reduction", "improvement"))  # error_free, loss_reduction
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # eval_loss, evalLoss, WERScore, rmse2


def metric_of(namespace: dict[str, Any], source: str) -> Callable[[torch.nn.Module], dict[str, float]] | None:
    """`evaluate(model)` with a bare number named "metric"; None when the target has none.

    What it calls "loss" becomes METRIC_LOSS, for "loss" is the training loss everywhere. The function raises UsageError
    `metric-not-a-number`, and `target-metric` where a name is one of TAKEN.
    """
    evaluate = contract.find(namespace, contract.METRIC)
    if evaluate is None:
        return None

    def metric(model: torch.nn.Module) -> dict[str, float]:
        value = evaluate(model)
        if not isinstance(value, Mapping):
            return {EVERY: _number(value, f"{source}: evaluate(model) returned")}
        named = {str(name): _number(each, f"{source}: evaluate(model) gives {name} as") for name, each in value.items()}
        if taken := [name for name in named if name in TAKEN or (name == METRIC_LOSS and LOSS in named)]:
            raise _wrong(
                f"{source}: evaluate gives a metric named {taken[0]}, which is the name of something else here",
                "give the metric another name",
            )
        return {METRIC_LOSS if name == LOSS else name: each for name, each in named.items()}

    return metric


def directions_of(namespace: dict[str, Any], source: str) -> Mapping[str, bool] | bool:
    """`HIGHER_IS_BETTER`: a bool for every metric, or one for each by name; empty where the target says nothing.

    Raises UsageError `target-metric` for anything else.
    """
    given = namespace.get("HIGHER_IS_BETTER", namespace.get("higher_is_better"))
    if given is None:
        return {}
    if isinstance(given, bool):
        return given
    named = dict(given) if isinstance(given, Mapping) else {"": given}
    for name, value in named.items():
        if not isinstance(value, bool):
            what = f"HIGHER_IS_BETTER for {name}" if name else "HIGHER_IS_BETTER"
            raise _wrong(
                f"{source}: {what} is {_shown(value)}, neither True nor False",
                "HIGHER_IS_BETTER = False, or HIGHER_IS_BETTER = {'accuracy': True, 'perplexity': False}",
            )
    return {METRIC_LOSS if name == LOSS else str(name): value for name, value in named.items()}


def higher_is_better(name: str, directions: Mapping[str, bool] | bool) -> bool | None:
    """Whether more of a metric is better: as the target says, else by the words in its name; None where these say none.

    directions: of directions_of. Of what is None nothing but "equal" can be shown, by no guess.
    """
    if isinstance(directions, bool):
        return directions
    return directions[name] if name in directions else _by_name(name)


def _by_name(name: str) -> bool | None:
    words = [word.lower() for word in _WORD.findall(name)]
    all_words = {*words, *(a + b for a, b in itertools.pairwise(words))}  # cross_entropy, log-loss
    lower = bool(all_words & _LOWER)
    if not lower and not all_words & _HIGHER:
        return None
    turned = words[0] in _NEGATED or (lower and words[-1] in _UNDONE)
    return lower == turned


def margins_of(namespace: dict[str, Any], source: str) -> dict[str, float]:
    """`MARGIN`, what the user lets count as equal, absolute; empty without it.

    A number is for the metric (the loss, where there is none); a dict has one for "loss" or for metrics, by name.

    Raises UsageError `target-margin` where one is not a finite number above zero.
    """
    given = namespace.get("MARGIN")
    if given is None:
        return {}
    one = EVERY if contract.find(namespace, contract.METRIC) is not None else LOSS
    margins = dict(given) if isinstance(given, Mapping) else {one: given}
    for name, value in margins.items():
        if not _is_margin(value):
            raise UsageError(
                "target-margin",
                f"{source}: MARGIN for {name} is {_shown(value)}, not a finite number above zero",
                "MARGIN = 0.005 for the metric, or MARGIN = {'loss': 0.01, 'accuracy': 0.005}",
            )
    return {str(name): float(value) for name, value in margins.items()}


def metric_notes(
    measured: Iterable[str], margins: Mapping[str, float], directions: Mapping[str, bool] | bool
) -> tuple[str, ...]:
    """What the target says of metrics that evaluate does not give, and the direction of each of which it says nothing.

    measured: the names that evaluate gave; nothing is said where none was measured.
    """
    names = list(dict.fromkeys(measured))
    if not names:
        return ()
    told = {
        "MARGIN": [name for name in margins if name not in (LOSS, EVERY)],
        "HIGHER_IS_BETTER": [] if isinstance(directions, bool) else list(directions),
    }
    notes = []
    for setting, given in told.items():
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                meant = f"it gives {near[0]}" if near else f"it gives {', '.join(names)}"
                written = LOSS if name == METRIC_LOSS and setting == "HIGHER_IS_BETTER" else name
                notes.append(f"{setting} names {written}, which evaluate does not give: {meant}")
    return (*notes, *_named_directions(names, directions))


def _named_directions(names: Sequence[str], directions: Mapping[str, bool] | bool) -> list[str]:
    """One note on the metrics whose direction the target leaves to their names."""
    if isinstance(directions, bool):
        return []
    untold = {name: higher_is_better(name, {}) for name in names if name not in directions}
    lower, higher, unknown = ([n for n, up in untold.items() if up is which] for which in (False, True, None))
    told = [f"lower is taken as better for {', '.join(lower)}"] if lower else []
    told += [f"higher is taken as better for {', '.join(higher)}"] if higher else []
    if unknown:
        told.append(f"no direction is known for {', '.join(unknown)}, where a difference decides nothing")
    return [f"HIGHER_IS_BETTER is not set, so names say which way: {'; '.join(told)}"] if told else []


def _number(value: Any, said: str) -> float:
    """The value as a float. said: how the error begins, which goes on with what the value is."""
    if (what := _no_number(value)) is None:
        try:
            return float(value.item() if isinstance(value, _ARRAYS) else value)
        except Exception as error:  # the value's own __float__, or a whole number beyond every float
            what = f"{type(value).__name__}, which gives no float: {safe_text(error)}"
    raise UsageError("metric-not-a-number", f"{said} {what}", "return a float, or a dict of floats by name")


def _no_number(value: Any) -> str | None:
    """What a value is that is not one real number; None of one that may be."""
    if isinstance(value, _ARRAYS):
        kind = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        if math.prod(value.shape) != 1:
            return f"{kind} of shape {tuple(value.shape)}"
        if value.is_complex() if isinstance(value, torch.Tensor) else np.iscomplexobj(value):
            return "a complex number"
        return None
    if isinstance(value, complex):
        return "a complex number"
    return type(value).__name__ if isinstance(value, bool) or not hasattr(value, "__float__") else None


def _is_margin(value: Any) -> bool:
    try:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and value > 0
    except OverflowError:  # a whole number beyond every float
        return False


def _shown(value: Any) -> str:
    """A value of the user's, as short as it is wrong."""
    try:
        text = repr(value)
    except Exception:  # also a whole number of more digits than Python prints
        text = ""
    return text if 0 < len(text) <= 60 and "\n" not in text else f"of type {type(value).__name__}, too long to show"


def _wrong(message: str, hint: str) -> UsageError:
    return UsageError("target-metric", message, hint)
