"""A server of :mod:`forks`: lists of arguments start the command.

Only the matrices are computed inside the forks instead of in workers of their own.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import intruscope.records.tables
import intruscope.spectra.matrix  # noqa: F401 - brings torch
import intruscope.spectra.scan as scanning
from forks import serve
from intruscope.cli.main import app, main
from intruscope.engine.executors import InlineExecutor
from intruscope.errors import UsageError

assert callable(scanning.executor_for)
scanning.executor_for = lambda function, settings, options: InlineExecutor(function)
with contextlib.suppress(UsageError):
    app(["scan", ".", "--k", "0"], standalone_mode=False)  # and the verb's module


def begin(arguments):
    """The exit code of a command."""
    sys.argv = ["intruscope", *arguments]
    try:
        main()
    except SystemExit as leaving:
        return leaving.code


serve(begin)
