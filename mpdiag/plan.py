"""The plan of FP32 islands: how a scan found it, and the file that puts it in force in production."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpdiag.errors import UsageError
from mpdiag.other_formats import FP16_ISLANDS
from mpdiag.version import __version__

if TYPE_CHECKING:
    from mpdiag.diagnosis import Diagnosis

PLAN_VERSION = 1  # 1: the first
# of the product FLOPs: with tensor cores eight times as fast, half of them in FP16 save less than half of the products'
# time, where BF16, if it keeps up, saves seven eighths
LEAST_HALF_SHARE = 0.5
NOTHING_LEFT = "nothing would be left in FP16"


@dataclass(frozen=True)
class IslandPlan:
    """Modules that FP16 autocast can train without, once they stay in FP32: found by trying, so fewer may exist.

    keep_fp32: those modules; with all of them in FP32 an FP16 iteration on the first batch, from the initial weights,
    is finite, keeps its numbers and has a loss scale that serves the rest if `enough`. minimal: none of them can be
    left out (unknown where False), which is not that no other set is smaller. near_limit: modules within an octave of
    overflow, which would be next. log2_scale, mode, growth_interval and backoff_factor: the loss scale under
    the plan. iterations
    and seconds: what the search took. reason: what it could not do. step_time_ratio: step time with the plan over
    that of the arm step_time_reference, FP16 without the plan; above 1 is speed lost; step_time_interval: its 95 %.
    step_time_reason: why there is no ratio, or why it decides nothing. half_share: of the FLOPs of a step's matrix
    products and convolutions, the share that the plan leaves in 16 bits; half_share_reason: why that is not known.
    modules: what each of keep_fp32 is, "Linear 24->64", or "" where that is not known. keep_fp32 is in the order of the
    forward pass.
    """

    keep_fp32: tuple[str, ...]
    enough: bool
    minimal: bool
    log2_scale: int | None
    mode: str
    growth_interval: int | None
    iterations: int
    seconds: float
    emulated: bool
    near_limit: tuple[str, ...] = ()
    reason: str | None = None
    step_time_ratio: float | None = None
    step_time_reference: str | None = None
    step_time_reason: str | None = "not measured: the plan was not trained"
    snippet: str | None = None
    backoff_factor: float | None = None
    step_time_interval: tuple[float, float] | None = None
    half_share: float | None = None
    half_share_reason: str | None = "not counted"
    modules: tuple[str, ...] = ()

    @property
    def mostly_fp32(self) -> bool:
        """Whether less than LEAST_HALF_SHARE is known to be left in 16 bits: a verified BF16 is the better way then."""
        return self.half_share is not None and self.half_share < LEAST_HALF_SHARE

    @property
    def spoken(self) -> tuple[str, ...]:
        """The names for people: an index, which says nothing, with what it is: `"0" (Linear 24->64)`."""
        known = dict(zip(self.keep_fp32, self.modules, strict=False))
        return tuple(spoken_module(name, known.get(name, "")) for name in self.keep_fp32)


@dataclass(frozen=True)
class SavedPlan:
    """plan.json. made_by: mpdiag's version; source: the scanned target.

    alternative_to: what the scan advises before this plan ("BF16"); None where the plan is what it advises.
    modules: what each of keep_fp32 is, "Linear 24->64"; empty in older files.
    """

    format: str
    keep_fp32: tuple[str, ...]
    log2_scale: int | None
    mode: str
    growth_interval: int | None
    made_by: str
    source: str
    alternative_to: str | None = None
    modules: tuple[str, ...] = ()
    schema_version: int = PLAN_VERSION


def spoken_module(name: str, what: str) -> str:
    """A module's name for people. what: its type and shape, which a bare index ("0", "3.1") is told with."""
    bare = bool(what) and name.replace(".", "").isdecimal()
    return f'"{name}" ({what})' if bare else name


def plan_snippet(names: tuple[str, ...], train: str | None, modules: tuple[str, ...] = ()) -> str:
    """The code that applies a plan, and then trains as the loss scale's snippet does. modules: as IslandPlan's."""
    listed = ", ".join(json.dumps(name, ensure_ascii=False) for name in names)
    told = [spoken_module(*pair) for pair in zip(names, modules, strict=False)]
    note = ", ".join(repr(each)[1:-1] for each in told)  # repr: no name ends the comment
    head = f"# in FP32: {note}\n" if set(told) - set(names) else ""
    apply = f"model = mpdiag.apply(model, [{listed}])  # or the path of plan.json\n"
    return f"import mpdiag\n\n{head}{apply}\n{train or ''}"


def plan_of(diagnosis: Diagnosis) -> SavedPlan | None:
    """The plan to save; None where nothing has to stay in FP32, or where no plan was found to be enough."""
    advice, target = diagnosis.advice, diagnosis.target
    plan = advice.plan if advice else None
    if advice is None or target is None or plan is None or not plan.enough or not plan.keep_fp32:
        return None  # names that were not tried are for a reader, not for production
    advised = advice.format_choice.chosen if advice.format_choice else diagnosis.train_in
    return SavedPlan(
        advice.format, plan.keep_fp32, plan.log2_scale, plan.mode, plan.growth_interval, __version__, target.source,
        alternative_to=None if advised in (None, FP16_ISLANDS) else advised,
        modules=plan.modules,
    )  # fmt: skip


def plan_to_json(plan: SavedPlan) -> str:
    """The content of plan.json."""
    record = asdict(plan)
    return json.dumps({"schema_version": record.pop("schema_version"), **record}, indent=1) + "\n"


def read_plan(plan: str | Path | Mapping[str, Any]) -> SavedPlan:
    """A plan from its file, or from the file's content as a dict; unknown keys are ignored.

    Raises UsageError `no-such-file` or `not-a-plan`.
    """
    if isinstance(plan, Mapping):
        return _checked(plan, "the plan")
    try:
        text = Path(plan).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("no-such-file", f"{plan}: {error}", _HINT) from None
    try:
        return _checked(json.loads(text), str(plan))
    except (ValueError, RecursionError) as error:
        raise UsageError("not-a-plan", f"{plan}: not JSON: {error}", _HINT) from None


_HINT = "give the <name>.plan.json that `mpdiag scan` wrote, or a list of module names"


def _checked(raw: Any, where: str) -> SavedPlan:
    if not isinstance(raw, Mapping) or raw.get("schema_version") != PLAN_VERSION:
        version = raw.get("schema_version") if isinstance(raw, Mapping) else None
        said = f"schema_version {version}, this mpdiag reads {PLAN_VERSION}" if version else "no schema_version"
        raise UsageError("not-a-plan", f"{where}: {said}", _HINT)
    names = raw.get("keep_fp32")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UsageError("not-a-plan", f"{where}: keep_fp32 is not a list of module names", _HINT)
    return SavedPlan(
        format=raw.get("format", "FP16"),
        keep_fp32=tuple(names),
        log2_scale=raw.get("log2_scale"),
        mode=raw.get("mode", "dynamic"),
        growth_interval=raw.get("growth_interval"),
        made_by=raw.get("made_by", ""),
        source=raw.get("source", ""),
        alternative_to=raw.get("alternative_to"),
        modules=tuple(raw.get("modules", ())),
    )
