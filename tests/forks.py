"""Processes started again and again out of one that has the libraries, so that a start costs little.

A server (``cli_forks.py``, ``command_forks.py``) reads lines of JSON. A number waits for that process and
answers with its exit code (negative for a signal); anything else starts one in a fork and answers with its
process id. The forks are whole processes, to be killed, and so are their workers.
"""

import json
import os
import signal
import subprocess
import sys
import time


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
                sys.stdout.flush()
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
            env={**os.environ, **environment},
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


def fork_workers():
    """From now on the workers of this process are forks of it, which leave nothing to import."""
    from intruscope.engine import processes

    processes.subprocess = _Forks


class _Forks:
    """The part of the module ``subprocess`` that :mod:`intruscope.engine.processes` uses."""

    PIPE, TimeoutExpired = subprocess.PIPE, subprocess.TimeoutExpired

    class Popen:
        """A worker in a fork: the same session, pipes and environment, but for a new interpreter."""

        def __init__(self, command, *, stderr, env, **_):
            theirs_in, ours_in = os.pipe()
            ours_out, theirs_out = os.pipe()
            self.pid = os.fork()
            if self.pid == 0:
                _work(command, (theirs_in, theirs_out, stderr.fileno()), env)
            os.close(theirs_in)
            os.close(theirs_out)
            self.stdin, self.stdout = os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb")
            self._code = None

        def wait(self, timeout=float("inf")):
            """The exit code, as of a ``subprocess.Popen``."""
            end = time.monotonic() + timeout
            while self._code is None:
                pid, status = os.waitpid(self.pid, 0 if timeout == float("inf") else os.WNOHANG)
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > end:
                    raise subprocess.TimeoutExpired("worker", timeout)
                else:
                    time.sleep(0.01)
            return self._code


def _work(command, streams, environment):
    """Be that worker to the end."""
    import torch

    from intruscope.engine import worker

    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 1024)  # the locks of files among them, which would outlive who holds them
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        sys.stdin, sys.argv = os.fdopen(0), command[2:]
        worker.main()
    except BaseException as leaving:
        os._exit(leaving.code if isinstance(leaving, SystemExit) else 1)
    os._exit(0)
