"""Which format for this job on this GPU, and why: what was trained here comes before what is only foretold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mpdiag.advice.checks.recurrent import RecurrentInFp16, recurrent_in_fp16
from mpdiag.diagnosis import Advice, Diagnosis, Environment, Verification
from mpdiag.other_formats import BF16, FP16, FP16_ISLANDS, FP32, TF32, FormatChoice, FormatForecast, FormatOption
from mpdiag.plan import IslandPlan

SINCE = {"FP16": 7.0, "BF16": 8.0, "TF32": 8.0, "FP8": 8.9, "MXFP8": 10.0, "NVFP4": 10.0}
"""The first compute capability whose tensor cores multiply in a format: NVIDIA's architecture papers from Volta to
Blackwell, and Transformer Engine's support matrix."""

_ROWS = {"FP8": ("E4M3", "E5M2")}  # one format by the table's names, another by the reader's
_ARMS = {"fp16": FP16, "fp16-plan": FP16_ISLANDS, "bf16": BF16}
_BY_LOSS = "passed by loss"
_BEYOND = ("NVFP4", "MXFP8", "FP8")  # fewest bits first


def with_format_choice(diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis with its advice's choice made anew from all that is known; without advice as it is."""
    advice = diagnosis.advice
    if advice is None:
        return diagnosis
    choice = choose_format(diagnosis.environment, advice, diagnosis.verification)
    return replace(diagnosis, advice=replace(advice, format_choice=choice))


def choose_format(environment: Environment, advice: Advice, verification: Verification | None) -> FormatChoice:
    """What the verification lets the job train in; else the first of FP16, BF16 and TF32 that is foretold to fit.

    FP8 and block-scaled formats are never chosen: nothing here trains in them.
    """
    has = tensor_core_formats(environment)
    states = {arm: _state(arm, verification) for arm in _ARMS}
    options = _options(environment, advice, has, states)
    chosen, verified, reason = _chosen(environment, advice, verification, has, states)
    more = [o.format for o in options if o.format in _BEYOND and o.on_this_gpu and _fits(advice, o.format)]
    if more:
        told = " and ".join(f"{fmt}{_noise(advice, fmt)}" for fmt in more)
        reason += f"; the range of {told} is foretold to fit, not trained here"
    return FormatChoice(chosen, verified, reason, options)


def tensor_core_formats(environment: Environment) -> frozenset[str] | None:
    """What the GPU's tensor cores multiply in; None where there is no GPU, or not one of NVIDIA's."""
    if environment.gpu is None or environment.cuda is None or environment.compute_capability is None:
        return None
    if "GTX 16" in environment.gpu:  # compute capability 7.5 as the T4, but without tensor cores
        return frozenset()
    return frozenset(fmt for fmt, since in SINCE.items() if float(environment.compute_capability) >= since)


def _chosen(
    environment: Environment,
    advice: Advice,
    verification: Verification | None,
    has: frozenset[str] | None,
    states: Mapping[str, str | None],
) -> tuple[str, bool, str]:
    where = f" on this {environment.gpu}" if environment.gpu else ""
    plan = _plan(advice)
    if verification is not None and verification.train_with in _ARMS:
        return _verified(verification, environment, advice, has, states)
    if not advice.other_formats:
        return FP32, False, "no tensor that autocast has in 16 bits was seen"
    if states["fp16"] != "worse" and _on(has, FP16) and not _against_fp16(advice):
        scale = advice.loss_scale.log2_scale
        return FP16, False, f"foretold to fit{where}, loss scale 2^{scale}{_here(states['fp16'])}"
    why = _against_fp16(advice) or "FP16 falls behind FP32 here" if _on(has, FP16) else "no tensor cores for FP16"
    with_plan = states["fp16-plan"] != "worse" and _on(has, FP16) and plan is not None
    fits = states["bf16"] != "worse" and _on(has, BF16) and _fits(advice, BF16)
    if fits and (half := _half_in_bf16(advice)):
        why += f"; BF16 is no way out: {half}"
    elif fits:
        other = "; the alternative is FP16 with the plan's modules in FP32" if with_plan else ""
        return BF16, False, f"{why}; BF16 has FP32's range: foretold to fit{where}{_here(states['bf16'])}{other}"
    if with_plan:
        here = _here(states["fp16-plan"])
        return FP16_ISLANDS, False, f"{why}; with the plan's modules in FP32 it is foretold to fit{here}"
    if has and TF32 in has and _fits(advice, TF32):
        return TF32, False, f"{why}; TF32 keeps FP32's range and storage, not trained here"
    return FP32, False, why


def _verified(
    verification: Verification,
    environment: Environment,
    advice: Advice,
    has: frozenset[str] | None,
    states: Mapping[str, str | None],
) -> tuple[str, bool, str]:
    """What the verification lets the job train in; with the plan where FP16 passes and something is to be mended."""
    arm = verification.train_with or ""
    chosen, verified = _ARMS[arm], True
    emulated = any(trial.emulated for trial in verification.trials if trial.arm == arm)
    reason = f"trained here{', emulated,' if emulated else ''} and keeps up with FP32"
    reason += " in its loss, evaluate() gave no metric" if states[arm] == _BY_LOSS else ""
    errors = _errors(advice) if arm == "fp16" else ""
    if arm == "fp16" and _plan(advice) is not None and states["fp16-plan"] != "worse":
        chosen, verified = FP16_ISLANDS, states["fp16-plan"] == "passed"
        islands = "keeps up too" if verified else "is undecided" if states["fp16-plan"] else "was not trained"
        mend = f"{errors} to be mended first" if errors else "what it loses is to be mended first"
        reason = f"FP16 {reason}, but {mend}; with the plan's modules in FP32 it {islands}"
    elif errors:
        reason += f"; {errors} to be mended first"
    if arm == "bf16" and (half := _half_in_bf16(advice)):
        reason += f"; {half}"
    if has is not None and chosen.split()[0] not in has:
        reason += f"; {environment.gpu} has no tensor cores for it, so it saves memory, not time"
    return chosen, verified, reason


def _plan(advice: Advice) -> IslandPlan | None:
    """The plan that training may follow."""
    return advice.plan if advice.plan is not None and advice.plan.enough and advice.plan.keep_fp32 else None


def _options(
    environment: Environment, advice: Advice, has: frozenset[str] | None, states: Mapping[str, str | None]
) -> tuple[FormatOption, ...]:
    whys = {
        "FP16": _trained(states["fp16"]) or _against_fp16(advice) or f"foretold to fit: {advice.loss_scale.reason}",
        "BF16": "; ".join(filter(None, (_trained(states["bf16"]) or _foretold(advice, "BF16"), _half_in_bf16(advice)))),
        "TF32": f"{_foretold(advice, 'TF32')}; only products are quicker, memory stays FP32's",
        **{fmt: _foretold(advice, fmt) for fmt in ("FP8", "MXFP8", "NVFP4")},
    }
    offered = {fmt: None if has is None else fmt in has for fmt in whys}
    return tuple(FormatOption(fmt, offered[fmt], _placed(fmt, why, environment, has)) for fmt, why in whys.items())


def _placed(fmt: str, why: str, environment: Environment, has: frozenset[str] | None) -> str:
    """The reason, after whether this GPU can."""
    if has is None:
        return f"{why} (NVIDIA tensor cores from compute capability {SINCE[fmt]} on)"
    if fmt not in has:
        capability = environment.compute_capability
        return f"no tensor cores for it: needs compute capability {SINCE[fmt]}, this is {capability}; {why}"
    if fmt in ("MXFP8", "NVFP4") and float(environment.compute_capability or 0) >= 12:
        return f"{why}; Transformer Engine trains in it on data-centre Blackwell (10.x), not or only in part on 12.x"
    return why


def _on(has: frozenset[str] | None, fmt: str) -> bool:
    """Whether a format may be advised: this GPU has it, or which GPU will be used is not known."""
    return has is None or fmt in has


def _against_fp16(advice: Advice) -> str:
    """What speaks against FP16 as it is; empty where nothing does."""
    errors = _errors(advice)
    if errors:
        return f"FP16 needs changes: {errors}"
    if plan := _plan(advice):
        return f"FP16 needs {len(plan.keep_fp32)} module{'' if len(plan.keep_fp32) == 1 else 's'} in FP32"
    return f"FP16: {advice.loss_scale.reason}" if advice.loss_scale.log2_scale is None else ""


def _half_in_bf16(advice: Advice) -> str:
    """What computes in FP16 under BF16 autocast too, so that BF16's range is not its own; empty where nothing does."""
    named = recurrent_in_fp16(advice)
    return f"under it {named}, without a loss scale ({RecurrentInFp16.code})" if named else ""


def _errors(advice: Advice) -> str:
    """The codes of what has to be mended, each once."""
    return ", ".join(dict.fromkeys(f.code for f in advice.findings if f.severity == "error"))


def _rows(advice: Advice, fmt: str) -> list[FormatForecast]:
    return [row for row in advice.other_formats if row.format in _ROWS.get(fmt, (fmt,))]


def _fits(advice: Advice, fmt: str) -> bool:
    rows = _rows(advice, fmt)
    return bool(rows) and all(row.fits for row in rows)


def _noise(advice: Advice, fmt: str) -> str:
    """How precise a format is, in words to add; FP16, BF16 and TF32 are known to train, so theirs needs none."""
    known = [row.noise_db for row in _rows(advice, fmt) if row.noise_db is not None]
    return f" (rounding noise about {min(known):.0f} dB below the signal)" if known and fmt in _BEYOND else ""


def _foretold(advice: Advice, fmt: str) -> str:
    rows = _rows(advice, fmt)
    if not rows:
        return "not foretold: no tensor was counted for it"
    if all(row.fits for row in rows):
        return f"its range is foretold to fit{_noise(advice, fmt)}, not trained here"
    losing = [f"{row.part}, {row.losing} of {row.tensors} tensors lose too much" for row in rows if row.losing]
    return f"foretold: {'; '.join(losing) or 'overflows'}"


def _state(arm: str, verification: Verification | None) -> str | None:
    """ "passed", "worse" or "undecided" by an arm's losses and metrics; None where it was not trained.

    _BY_LOSS where it passed and evaluate() gave no metric.
    """
    about = [c for c in verification.comparisons if c.candidate == arm and not c.is_ratio] if verification else []
    judged = [c for c in about if c.verdict != "not-measured" and c.decides]
    if not judged:
        return None
    if verification is not None and verification.strays:  # FP32 did not repeat itself, so no arm was told from it
        return "undecided"
    if any(c.verdict == "worse" for c in judged):
        return "worse"
    passed = all(c.verdict in ("equivalent", "better") or (c.test and c.test.noninferior) for c in judged)
    if passed and any(c.verdict == "not-measured" for c in about):
        return _BY_LOSS
    return "passed" if passed else "undecided"


def _here(state: str | None) -> str:
    """What to add of an arm that is foretold to fit: how it did here."""
    told = {
        "passed": ", keeps up with FP32 here",
        _BY_LOSS: ", keeps up here in its loss",
        "worse": ", falls behind FP32 here",
    }
    return told.get(state or "", ", here undecided") if state else ", not trained here"


def _trained(state: str | None) -> str | None:
    told = {
        "passed": "trained here, keeps up with FP32",
        _BY_LOSS: "trained here, keeps up with FP32 in its loss, evaluate() gave no metric",
        "worse": "trained here, falls behind FP32",
    }
    return told.get(state or "", "trained here, undecided") if state else None
