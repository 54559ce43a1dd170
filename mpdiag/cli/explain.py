"""`mpdiag explain CODE`."""

from __future__ import annotations

import difflib

import click

from mpdiag.errors import UsageError


@click.command(short_help="What a finding means and what to do.")
@click.argument("code", required=False)
def explain(code: str | None) -> int:
    """What a finding means, its threshold, its remedy, its source and how sure it is. Without CODE: a list of all."""
    from mpdiag.advice.checks import ALL, BY_CODE

    if code is None:
        for each in ALL:
            summary = (each.__doc__ or "").strip().splitlines()[0]
            click.echo(f"{each.code}  {each.name:<25} {each.certainty:<9}  {summary}")
        return 0
    by_name = {check.name: check for check in ALL}
    check = BY_CODE.get(code.upper()) or by_name.get(code.lower())
    if check is None:
        begun = [known for known in BY_CODE if code and known.startswith(code.upper())]
        near = begun or difflib.get_close_matches(code.upper(), BY_CODE, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError("unknown-code", f"no finding has the code {code}", f"{hint}`mpdiag explain` lists them all")
    click.echo(check.page(), nl=False)
    return 0
