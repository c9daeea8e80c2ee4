"""Starts the command again and again out of one process that has torch already, so that a start costs little.

Reads lines of JSON: a list of arguments starts the command in a fork and answers with its process id; a
number waits for that process and answers with its exit code (negative for a signal). The forks are whole
processes, to be killed; only the matrices are computed inside them instead of in workers of their own.
"""

import contextlib
import json
import os
import sys

import intruscope.report.tables
import intruscope.spectra.matrix  # noqa: F401 - brings torch
import intruscope.spectra.scan as scanning
from intruscope.cli.main import app, main
from intruscope.engine.executors import InlineExecutor
from intruscope.errors import UsageError

assert callable(scanning.executor_for)
scanning.executor_for = lambda function, settings, options: InlineExecutor(function)
with contextlib.suppress(UsageError):
    app(["scan", ".", "--k", "0"], standalone_mode=False)  # and what typer imports to read options

for line in sys.stdin:
    request = json.loads(line)
    if isinstance(request, int):
        answer = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
    else:
        answer = os.fork()
        if answer == 0:
            sys.argv = ["intruscope", *request]
            try:
                main()
            except SystemExit as leaving:
                os._exit(leaving.code)  # taking torch apart costs a second
    print(answer, flush=True)
os._exit(0)
