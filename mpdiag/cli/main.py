"""The command group and what every command shares: how errors are shown and which exit code they give."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys

import click

from mpdiag.cli.delivery import internal
from mpdiag.cli.explain import explain
from mpdiag.cli.process import interruptible_to_the_end, leave_if_forked, streams_opened
from mpdiag.cli.report import report
from mpdiag.cli.scan import scan
from mpdiag.cli.stdout import stdout_failed
from mpdiag.cli.verify import verify
from mpdiag.errors import MpdiagError, UserCodeError
from mpdiag.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mpdiag")
def commands() -> None:
    """May this PyTorch job train in mixed precision, what breaks, what is gained?

    \b
    mpdiag scan model.py       observe, advise, verify; writes reports/model.html and .json
    mpdiag verify run.json     finish on a GPU what a scan on a laptop began
    mpdiag explain MP201       what a finding means and what to do

    \b
    Exit codes: 0 nothing at or above --fail-on; 1 findings at or above it, or a no-go;
    2 usage; 3 could not do its work, or inconclusive.
    """


for command in (scan, verify, report, explain):
    commands.add_command(command)


def process() -> None:
    """Run the command line in a process that is its own, as the script `mpdiag` does; never returns."""
    interruption = interruptible_to_the_end()
    try:
        main()
    except SystemExit as ended:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # _run has said what there is to say of a stdout that fails
                stream.flush()
        interruption.end(ended.code if isinstance(ended.code, int) else 0)
        raise


def main() -> None:
    """Run the command line within any process; never returns."""
    streams_opened()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a sign shows its number instead
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    """The exit code; every failure has been said by then."""
    process = os.getpid()
    try:
        return _finished(arguments)
    except (click.Abort, KeyboardInterrupt) as stopped:
        leave_if_forked(process, stopped)
        _say("interrupted", f"stopped by {stopped or 'Ctrl-C'}", "nothing had been seen yet; run it again")
        return 3
    except MpdiagError as error:
        leave_if_forked(process, error)
        return _failed(error)
    except Exception as error:
        leave_if_forked(process, error)
        if not isinstance(error, OSError) or error.filename is not None:
            return _failed(internal(error))
        failure = stdout_failed(error)  # no file was being opened
        return 0 if failure is None else _failed(failure)


def _finished(arguments: list[str]) -> int:
    """The exit code of a command; says what was wrong with how it was typed."""
    try:
        # not commands.main(): that turns a broken pipe into exit code 1 by itself
        with commands.make_context("mpdiag", arguments) as context:
            code = commands.invoke(context)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        _say("usage", error.format_message(), _usage_hint(error))
        return 2
    except click.ClickException as error:
        _say("usage", error.format_message(), "see `mpdiag --help`")
        return 2


def _failed(error: MpdiagError) -> int:
    if os.environ.get("MPDIAG_DEBUG"):
        raise error
    if isinstance(error, UserCodeError):
        click.echo(error.traceback.rstrip(), err=True)
    _say(error.slug, error.message, error.hint)
    return error.exit_code


def _say(slug: str, message: str, hint: str) -> None:
    one_line = " ".join(message.split())
    click.echo(f"error[{slug}]: {one_line}\nhint: {hint}", err=True)


def _usage_hint(error: click.UsageError) -> str:
    """The option or command that was probably meant, else where the help is."""
    path = error.ctx.command_path if error.ctx is not None else "mpdiag"
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        return f"did you mean {' or '.join(sorted(error.possibilities))}? see `{path} --help`"
    words = error.format_message().split("'")
    near = difflib.get_close_matches(words[1], commands.commands, n=1) if len(words) > 1 else []
    return f"did you mean `mpdiag {near[0]}`?" if near and path == "mpdiag" else f"see `{path} --help`"
