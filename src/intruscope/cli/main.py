"""The command line: its verbs, and how errors and signals become messages and exit codes.

Exit codes are those of ``docs/exit-codes.md``. Every error is one line on standard error.
"""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

from intruscope.cli.cache import cache
from intruscope.cli.chain import chain
from intruscope.cli.demo import demo
from intruscope.cli.extract import extract
from intruscope.cli.forget import forget
from intruscope.cli.layers import layers
from intruscope.cli.methods import methods
from intruscope.cli.profile import profile
from intruscope.cli.repair import repair
from intruscope.cli.scan import scan
from intruscope.cli.screen import emit, send_output_nowhere
from intruscope.cli.study import study
from intruscope.cli.sweep import sweep
from intruscope.cli.tune import tune
from intruscope.errors import IntruscopeError, ResourceExhausted, allocation_failure, printable
from intruscope.train.processes import leave, let_the_first_speak

if TYPE_CHECKING:
    from types import FrameType

_RESUMING = ("scan", "repair", "extract", "sweep", "tune", "chain", "study")
"""The verbs that keep a journal and resume when they are run again."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    name="intruscope",
    help="See what a fine-tune did to a model's weights.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(scan)
app.command()(layers)
app.command()(repair)
app.command()(extract)
app.command()(forget)
app.command()(sweep)
app.command()(tune)
app.command()(chain)
app.command()(methods)
app.command()(profile)
app.add_typer(study)
app.command()(cache)
app.command()(demo)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"intruscope {installed('intruscope')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


class _Stopped(BaseException):
    """SIGINT or SIGTERM, as an exception that unwinds everything and that nobody else catches."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def _on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    raise _Stopped(number)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a narrow encoding must not end a scan
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _on_signal)
    if sys.argv[1:2] != ["profile"]:  # which times models the way other programs would run them
        # OpenMP reads it when torch is loaded. Threads that spin while they wait double the processor time of
        # small models, and take ten times as long where something else runs on the same cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
        emit("")  # what is still buffered must not fail unseen, after the last line of this program
    except IntruscopeError as error:
        if error.already_reported:
            let_the_first_speak()
        else:
            _complain(str(error))
        code = error.exit_code
    except _Stopped as stop:
        how = "interrupted" if stop.exit_code == 130 else "terminated"
        resumed = sys.argv[1:2] and sys.argv[1] in _RESUMING
        _complain(f"{how}; run the same command again" + (" to go on where it stopped" if resumed else ""))
        code = stop.exit_code
    except BrokenPipeError:  # a reader of help or a list has left
        code = 0
        send_output_nowhere()
    except Exception as error:
        code = _exhausted_usage_or_bug(error)
    code = code if isinstance(code, int) else 0
    leave(code)
    sys.exit(code)


def _exhausted_usage_or_bug(error: Exception) -> int:
    exhausted = allocation_failure(error, remedy="use smaller settings, or a machine with more memory")
    if exhausted is None and isinstance(error, OSError) and error.errno in _NO_ROOM:
        send_output_nowhere()
        where = f" to {printable(error.filename)}" if error.filename else ""
        exhausted = ResourceExhausted(
            f"could not write{where} ({error.strerror})", remedy="free some space and run again"
        )
    if exhausted is not None:
        _complain(str(exhausted))
        return exhausted.exit_code
    # Typer's own complaints; by their form, since it carries click or a copy of it, by version.
    message, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if callable(message):
        command = context.command_path if context is not None else "intruscope"
        _complain(f"error[usage] {printable(message().rstrip('.'))}; see {command} --help")
        return 2
    import traceback

    if any(re.fullmatch("--verbose|-[a-z]*v[a-z]*", given) for given in sys.argv[1:]):
        traceback.print_exc()
    place = traceback.extract_tb(error.__traceback__)[-1]
    _complain(
        f"error[bug] {type(error).__name__}: {printable(error)} (line {place.lineno} of {place.name}); "
        "this is a fault of Intruscope: run again with -v and report what it prints"
    )
    return 70


def _complain(text: str) -> None:
    print(text, file=sys.stderr)
