"""`mpdiag explain CODE`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

import click

from mpdiag.errors import UsageError


@click.command(short_help="What a finding means and what to do.")
@click.argument("code", required=False)
def explain(code: str | None) -> int:
    """What a finding means, its threshold, its remedy, its source and how sure it is. Without CODE: a list of all."""
    from mpdiag.advice.checks import ALL, BY_CODE, HUNDREDS

    if code is None:
        for each in ALL:
            summary = (each.__doc__ or "").strip().splitlines()[0]
            click.echo(f"{each.code}  {each.name:<25} {each.certainty:<9}  {summary}")
        return 0
    by_name = {check.name: check for check in ALL}
    check = BY_CODE.get(code.upper()) or by_name.get(code.lower())
    if check is None:
        near = _near(code, BY_CODE, by_name)
        ranges = ", ".join(f"{hundred}xx {about}" for hundred, about in HUNDREDS.items())
        hint = f"did you mean {near}? " if near else f"the codes are {ranges}; "
        raise UsageError("unknown-code", f"no finding has the code {code}", f"{hint}`mpdiag explain` lists them all")
    click.echo(check.page(), nl=False)
    return 0


def _near(asked: str, codes: Collection[str], names: Collection[str]) -> str | None:
    """The code of the same hundred whose number is nearest, or the name that is most alike; None where none is near."""
    digits = re.fullmatch(r"[A-Za-z]{0,2}([0-9]{1,3})", asked.strip())
    if digits is None:
        return next(iter(difflib.get_close_matches(asked.lower(), names, n=1)), None)
    alike = [code for code in codes if code[2] == digits[1][0]]
    number = int(digits[1].ljust(3, "0"))  # "MP20" is begun: MP201 is the nearest to 200
    return min(alike, key=lambda code: abs(int(code[2:]) - number), default=None)
