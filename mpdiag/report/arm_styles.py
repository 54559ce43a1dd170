"""One colour and one dash for each arm, by its name: the same in every chart of every report."""

from __future__ import annotations

from collections.abc import Iterable

_NAMES = ("fp32", "fp16", "bf16", "fp16-plan", "fp16-unscaled", "fp16-pure", "fp32-configured")
OTHER = len(_NAMES)  # any arm without a place of its own
DASHES = ("", "8 4", "2 3", "10 3 2 3", "4 2", "16 4", "10 3 2 3 2 3", "4 7")
"""By style, as SVG dash patterns: what tells the arms apart where colours do not. The baseline's is unbroken."""


def styles_of(arms: Iterable[str]) -> dict[str, int]:
    """Each arm's style, in the order given: the number n of the colour --arm-n and of the dash DASHES[n]."""
    return {arm: _NAMES.index(arm) if arm in _NAMES else OTHER for arm in dict.fromkeys(arms)}
