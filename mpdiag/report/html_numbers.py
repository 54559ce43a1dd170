"""Numbers as the page prints them: sensible digits, a unit, and powers of two as superscripts.

Nothing here turns "not measured" into a number: None is the templates' business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from markupsafe import Markup, escape

from mpdiag.report.plain_numbers import parts, tidy

THIN = "\u202f"  # narrow no-break space between a number and its unit
MINUS = "\u2212"

SHARES = ("underflow", "overflow", "energy_lost", "share", "subnormal", "stagnant", "busy")

_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def share(fraction: float) -> str:
    """A share in percent, also one above 1; a small one is "<0.01 %", never a rounded zero, nor all of a part."""
    if not math.isfinite(fraction):
        return nonfinite(fraction)
    percent = fraction * 100
    if percent == 0:
        text = "0"
    elif percent < 0.01:
        text = "<0.01"
    elif percent < 1:
        text = f"{percent:.2f}"
    elif abs(percent - 100) < 1e-9:  # a sum of shares may end a last bit beside it
        text = "100"
    elif 99.95 <= percent < 100:
        text = ">99.9"
    else:
        text = f"{percent:.1f}"
    return f"{text}{THIN}%"


def power(exponent: float) -> Markup:
    """2 to a power, as markup."""
    shown = f"{exponent:g}".replace("-", MINUS)
    return Markup("2<sup>{}</sup>").format(shown)


def size(count: float) -> str:
    """Bytes in KiB, MiB, GiB; what would be printed as 1024 of one is 1.0 of the next."""
    for unit, name in _BINARY:
        if count >= unit * (1 - 2**-11):  # 1023.5 of the unit below
            value = count / unit
            return f"{value:.{0 if value >= 100 else 1}f}{THIN}{name}"
    return f"{count:.0f}{THIN}bytes"


def tally(count: int) -> str:
    """How many, in at most four characters and a suffix: 1.64 M."""
    for unit, suffix in _LARGE:
        if count >= unit:
            return f"{count / unit:.3g}{THIN}{suffix}"
    return str(count)


def value(number: float, digits: int = 4) -> Markup:
    """A plain number to so many significant digits; very small and large ones as a power of ten."""
    if not math.isfinite(number):
        return Markup(nonfinite(number))
    shown, exponent = (str(part).replace("-", MINUS) for part in parts(number, digits))
    return Markup(shown if exponent == "0" else f"{shown}{THIN}×{THIN}10<sup>{exponent}</sup>")


def signed(number: float, digits: int = 3) -> Markup:
    """A difference with its sign, also when positive."""
    plus = "+" if number > 0 else ""
    return Markup(plus) + value(number, digits)


def ratio(factor: float) -> str:
    """A cost as a multiple of the baseline's, and the change it is."""
    if not math.isfinite(factor):
        return nonfinite(factor)
    change = round((factor - 1) * 100)
    sign = "+" if change > 0 else MINUS if change < 0 else ""
    return f"×{factor:.3f} ({sign}{abs(change)}{THIN}%)"


def with_unit(number: float, unit: str) -> Markup:
    """A measured quantity in its unit; bytes become binary multiples."""
    if unit == "bytes":
        return Markup(escape(size(number)))
    return value(number) + (Markup(f"{THIN}{escape(unit)}") if unit else Markup(""))


def joules(energy: float) -> Markup:
    """An energy in J, mJ or µJ."""
    for factor, unit in ((1.0, "J"), (1e-3, "mJ")):
        if energy >= factor:
            return with_unit(energy / factor, unit)
    return with_unit(energy * 1e6, "µJ")


def breakable(name: str) -> Markup:
    """A qualified name that may break after its dots, and stays whole for whoever copies it."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[.])", name))


def evidence(shown: bool | float | str, key: str) -> Markup:
    """A figure of a finding, by what its key says it is: a share, an exponent or a plain number."""
    if isinstance(shown, str):
        return Markup(escape(shown))
    if isinstance(shown, bool):
        return Markup("yes" if shown else "no")
    if key.endswith("_log2"):
        return power(shown)
    if any(word in key for word in SHARES) and 0 <= shown <= 1:
        return Markup(share(shown))
    return value(shown)


def facts(evidence_of: Mapping[str, float | str | None]) -> list[tuple[str, Markup | None]]:
    """The figures of a finding with their names in words. A limit is a share where the figure before it is one."""
    told: list[tuple[str, Markup | None]] = []
    before = ""
    for key, shown in evidence_of.items():
        limit = key.endswith("limit")
        words = key.removesuffix("_log2").replace("_", " ")
        told.append((words, None if shown is None else evidence(shown, f"{before}_{key}" if limit else key)))
        before = before if limit else key
    return told


def moment(created: str) -> str:
    """An ISO time as people write it."""
    return created.replace("T", " ").replace("+00:00", " UTC")


def nonfinite(number: float) -> str:
    """NaN, inf or -inf in words."""
    if math.isnan(number):
        return "NaN"
    return "inf" if number > 0 else f"{MINUS}inf"


def seconds(duration: float) -> str:
    """A duration for people."""
    if not math.isfinite(duration):
        return nonfinite(duration)
    if duration < 90:
        return f"{duration:.{1 if duration < 10 else 0}f}{THIN}s"
    return f"{duration / 60:.1f}{THIN}min"


def prose(text: str) -> Markup:
    """Text from the record, escaped, as the page sets numbers: 2^k and 1e-5 raised, ×, −, units; `names` as code."""
    parts = re.split(r"(`[^`]+`)", str(escape(text)))
    return Markup("".join(f"<code>{p[1:-1]}</code>" if p.startswith("`") else _set_numbers(p) for p in parts))


def _raised(exponent: str) -> str:
    return f"<sup>{str(int(exponent)).replace('-', MINUS)}</sup>"


def _set_numbers(safe: str) -> str:
    safe = re.sub(r"(?<=\d)\.\.(?=[-+]?\d)", " to ", safe)
    safe = re.sub(r"\b2\^\(?(-?\d+)\)?", lambda m: f"2{_raised(m[1])}", safe)
    safe = tidy(safe, value, "&lt;")
    safe = re.sub(r"(?<![\w.=>-])-(?=\d)", MINUS, safe)
    safe = re.sub(r"(?<![\w.])x(?=\d+\.\d)|(?<=\d)x(?= )", "×", safe)
    safe = re.sub(r"(?<=\d) ?%", f"{THIN}%", safe)
    safe = re.sub(r"(?<=\d) us\b", f"{THIN}µs", safe)
    return re.sub(r"(?<![\w-])--[a-z][a-z-]+", r'<span class="flag">\g<0></span>', safe)


FILTERS = {
    "share": share,
    "power": power,
    "size": size,
    "tally": tally,
    "value": value,
    "signed": signed,
    "ratio": ratio,
    "seconds": seconds,
    "prose": prose,
    "moment": moment,
    "facts": facts,
    "breakable": breakable,
}
"""What the templates call, by name."""
