"""Processes started again and again out of one that has the libraries, so that a start costs little.

A server (``cli_forks.py``, ``tune_forks.py``) reads lines of JSON. A number waits for that process and
answers with its exit code (negative for a signal); anything else starts one in a fork and answers with its
process id. The forks are whole processes, to be killed.
"""

import json
import os
import subprocess
import sys


def serve(begin):
    """Answer until nobody asks any more; ``begin`` takes a request and gives an exit code, in the fork."""
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                code = begin(request)
                sys.stderr.flush()
                os._exit(code)  # taking torch apart costs a second
        print(answer, flush=True)
    os._exit(0)


class Server:
    """A server's process, for the time of a ``with``; called with a request it gives the answer."""

    def __init__(self, script, *, stderr=None, **environment):
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=20)

    def __call__(self, request):
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())
