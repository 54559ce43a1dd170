"""Numbers for people: plain digits from 0.001 to 99,999, a power of ten outside, never more digits than say something.

The page sets a power as 1.2 × 10⁹, the terminal as 1.2e9; both take their digits from here. `tidy` does the same to
numbers that came inside a text, as Python prints them (2.93e+03).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

SMALLEST, LARGEST = 1e-3, 1e5  # in between, plain digits are shorter than a power of ten and read at a glance
LEAST_PERCENT = 1e-3  # "<0.001 %": a smaller percentage is a power of ten that nobody weighs

_PRINTED = r"(?<![\w=-])(?<!\w\()(?<!\d\.)([-+]?)(\d+(?:\.\d+)?e[-+]\d\d+)\b"
_PYTHONS = re.compile(_PRINTED + r"( ?%)?")
"""A number as Python prints it, sign and all. A one-digit exponent is somebody's code (eps=1e-5), as is lr=1e-05."""


def parts(number: float, digits: int = 4) -> tuple[str, int]:
    """(digits, power of ten) of a finite number; power 0: plain digits, of which those before the point all stay."""
    if number == int(number) and abs(number) < LARGEST:
        return f"{int(number)}", 0
    mantissa, power = f"{number:.{digits - 1}e}".split("e")
    exponent = int(power)
    if SMALLEST <= abs(float(f"{mantissa}e{power}")) < LARGEST:
        return _stripped(f"{number:.{max(0, digits - 1 - exponent)}f}"), 0
    return _stripped(mantissa), exponent


def plain(number: float, digits: int = 4) -> str:
    """A number in ASCII: 2930, 0.0012, 4.77e-7, 1.2e9; NaN, inf."""
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else f"{number:f}"
    shown, exponent = parts(number, digits)
    return f"{shown}e{exponent}" if exponent else shown


def tidy(text: str, show: Callable[[float], str] = plain, below: str = "<") -> str:
    """A text in which every number that Python printed with an exponent is set for people; `code` is left alone.

    below: what stands before the least percentage.
    """
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else _numbers(piece, show, below) for piece in pieces)


def _numbers(text: str, show: Callable[[float], str], below: str) -> str:
    def set_for_people(found: re.Match[str]) -> str:
        sign, number, percent = found[1], float(found[2]), found[3] or ""
        if percent and not sign and 0 < number < LEAST_PERCENT:
            return f"{below}{LEAST_PERCENT:g}{percent}"
        return f"{sign}{show(number)}{percent}"

    return _PYTHONS.sub(set_for_people, text)


def _stripped(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
