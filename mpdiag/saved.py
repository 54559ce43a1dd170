"""A Diagnosis as JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from enum import StrEnum
from typing import Any, Union

from mpdiag.diagnosis import SCHEMA_VERSION, SEVERITIES, VERDICTS, Diagnosis
from mpdiag.errors import UsageError
from mpdiag.plausible import require_plausible


def to_json(diagnosis: Diagnosis) -> str:
    """The diagnosis as strict JSON; a non-finite number becomes the string "NaN", "Infinity" or "-Infinity"."""
    # the version first: programs, and mpdiag itself, know the file by how it begins
    record = {"schema_version": diagnosis.schema_version} | dataclasses.asdict(diagnosis)
    return json.dumps(_plain(record), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Diagnosis:
    """Read a saved diagnosis back; unknown keys are ignored, so newer files of this schema version load.

    Raises UsageError (`not-a-diagnosis`, `schema-version`) for anything else.
    """
    hint = "give a JSON written by `mpdiag scan`"
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("not-a-diagnosis", f"not JSON: {error}", hint) from None
    if not isinstance(raw, dict) or "schema_version" not in raw:
        raise UsageError("not-a-diagnosis", "JSON without schema_version", hint)
    if raw["schema_version"] != SCHEMA_VERSION:
        raise UsageError(
            "schema-version",
            f"schema_version {json.dumps(raw['schema_version'])}, this mpdiag reads {SCHEMA_VERSION}",
            "scan again with this version, or use the version that wrote the file",
        )
    try:
        loaded = _typed(Diagnosis, raw)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError("not-a-diagnosis", f"a key is missing or malformed: {error}", hint) from None
    assert isinstance(loaded, Diagnosis)
    unknown = {f.severity for f in loaded.advice.findings} - set(SEVERITIES) if loaded.advice else set()
    verdict = loaded.verification.verdict if loaded.verification else None
    if unknown or verdict not in (None, *VERDICTS):
        raise UsageError("not-a-diagnosis", f"unknown severity or verdict: {sorted(unknown) or verdict}", hint)
    return loaded


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _typed(kind: Any, value: Any) -> Any:
    """`value` from JSON as the annotated type `kind`: a dataclass, tuple, dict, enum, union or plain value."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        members = [a for a in arguments if a is not type(None)]
        kind = next((a for a in members if len(members) == 1 or _fits(a, value)), None)
        if kind is None:
            raise TypeError(f"{value!r} is none of {members}")
        return _typed(kind, value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise TypeError(f"{value!r} is not a {kind.__name__}")
        hints = typing.get_type_hints(kind)
        known = {f.name: _typed(hints[f.name], value[f.name]) for f in dataclasses.fields(kind) if f.name in value}
        record = kind(**known)
        require_plausible(record, known)
        return record
    if origin is tuple and not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    if origin is tuple:
        inner = arguments if len(arguments) != 2 or arguments[1] is not ... else [arguments[0]] * len(value)
        return tuple(_typed(k, v) for k, v in zip(inner, value, strict=True))
    if origin is dict:
        return {k: _typed(arguments[1], v) for k, v in value.items()}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    if kind is float:
        return float(value)  # also the strings of non-finite numbers
    if kind is int and not _is_int(value):
        raise TypeError(f"{value!r} is not a whole number")
    if kind is bool and not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    if kind is str and not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(kind: Any, value: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity")
    if kind is int:
        return _is_int(value)
    if kind is float:
        return not isinstance(value, str) or value in ("NaN", "Infinity", "-Infinity")
    return True
