"""The command line: verbs, and what errors and signals mean outside.

Exit codes: 0 done; 1 a ``--fail-on`` gate tripped; 2 usage; 3 refused as unsafe; 4 malformed input;
5 incomplete (wins over 1: a scan that could not see everything never passes or fails a gate cleanly);
6 resources; 7 output conflict; 70 a bug of ours; 130 and 143 interrupted.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

from intruscope.cli.demo import demo
from intruscope.cli.scan import scan
from intruscope.errors import IntruscopeError

if TYPE_CHECKING:
    from types import FrameType

app = typer.Typer(
    name="intruscope",
    help="See what a fine-tune did to a model's weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(scan)
app.command()(demo)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"intruscope {installed('intruscope')}")
        raise typer.Exit


class _Terminated(BaseException):
    """SIGTERM, as an exception that unwinds like Ctrl-C does."""


def _on_terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        code = app(standalone_mode=False)
    except IntruscopeError as error:
        _complain(str(error))
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; run the same command again to go on where it stopped")
        code = 130
    except _Terminated:
        _complain("terminated; run the same command again to go on where it stopped")
        code = 143
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except Exception as error:
        code = _usage_or_bug(error)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_or_bug(error: Exception) -> int:
    from click import ClickException

    if isinstance(error, ClickException):
        error.show()
        return error.exit_code
    import traceback

    if "-v" in sys.argv or "--verbose" in sys.argv:
        traceback.print_exc()
    place = traceback.extract_tb(error.__traceback__)[-1]
    _complain(
        f"error[bug] {type(error).__name__}: {error} (line {place.lineno} of {place.name}); "
        "this is a fault of Intruscope: run again with -v and report what it prints"
    )
    return 70


def _complain(text: str) -> None:
    print(text, file=sys.stderr)
