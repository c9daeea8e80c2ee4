"""The command line: its verbs, and how errors and signals become messages and exit codes.

Exit codes are those of ``docs/exit-codes.md``. Every error is one line on standard error.
"""

from __future__ import annotations

import errno
import io
import re
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import click

from intruscope.cli.command import Verbs, command
from intruscope.cli.screen import emit, send_output_nowhere
from intruscope.errors import IntruscopeError, ResourceExhausted, allocation_failure, printable
from intruscope.train.processes import leave, let_the_first_speak

if TYPE_CHECKING:
    from types import FrameType

_RESUMING = (
    "diagnose", "scan", "compare", "verify", "repair", "extract", "sweep", "knowledge", "tune", "chain",
    "study",
)  # fmt: skip
"""The verbs that resume when they are run again."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_VERBS = {
    "Look": {
        "diagnose": "Did the fine-tune break the model, and what now?",
        "scan": "Find the intruder dimensions of a fine-tuned model.",
        "inspect": "Look into adapters without their base.",
        "compare": "Compare several fine-tunes of one base.",
        "verify": "Check that a merged model holds its adapter.",
        "layers": "List the matrices of a model.",
        "demo": "Fine-tune and scan a small bundled model.",
        "cache": "List or remove what interrupted runs resume from.",
    },
    "Measure": {
        "forget": "Measure how much a fine-tune forgot.",
        "knowledge": "Find out which facts a fine-tune learned and lost.",
        "profile": "Measure what a training step costs with each method.",
    },
    "Fix": {
        "repair": "Scale intruder dimensions down and write the result.",
        "sweep": "Find the strength at which a repair pays off.",
        "guide": "Generate with base and tuned model together.",
        "extract": "Turn a full fine-tune into a LoRA adapter.",
        "merge": "Merge several fine-tunes of one base.",
    },
    "Train": {
        "tune": "Fine-tune a model with any method.",
        "chain": "Fine-tune on one task after another.",
        "methods": "List the fine-tuning methods.",
    },
    "Study": {"study": "Re-run the paper's experiments."},
}


def _load(verb: str) -> click.Command:
    found = getattr(import_module(f"intruscope.cli.{verb}"), verb)
    return found if isinstance(found, click.Command) else command(found)


app = click.version_option(package_name="intruscope", message="%(prog)s %(version)s")(
    Verbs("intruscope", _VERBS, _load, help="See what a fine-tune did to a model's weights.")
)


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
    try:
        with app.make_context("intruscope", sys.argv[1:]) as context:
            code = app.invoke(context)
        emit("")  # what is still buffered must not fail unseen, after the last line of this program
    except click.exceptions.Exit as leaving:
        code = leaving.exit_code
    except IntruscopeError as error:
        if error.already_reported:
            let_the_first_speak()
        else:
            _complain(str(error))
        code = error.exit_code
    except _Stopped as stop:
        how = "interrupted" if stop.exit_code == 130 else "terminated"
        resumed = sys.argv[1:2] and sys.argv[1] in _RESUMING
        _complain(f"{how}; run the same command again" + (" to resume" if resumed else ""))
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
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "intruscope"
        message = re.sub(r"\. Did you mean (.+)\?$", r" (did you mean \1?)", error.format_message())
        _complain(f"error[usage] {printable(message.rstrip('.'))}; see {command} --help")
        return 2
    import traceback

    if any(re.fullmatch("--verbose|-[a-z]*v[a-z]*", given) for given in sys.argv[1:]):
        traceback.print_exc()
    place = traceback.extract_tb(error.__traceback__)[-1]
    _complain(
        f"error[bug] {type(error).__name__}: {printable(error)} (line {place.lineno} of {place.name}); "
        "this is a bug in Intruscope: run again with -v and report the traceback"
    )
    return 70


def _complain(text: str) -> None:
    print(text, file=sys.stderr)
