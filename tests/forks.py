"""Processes started again and again out of one that has the libraries, so that a start costs little.

A server (``cli_forks.py``, ``command_forks.py``) reads lines of JSON. A number waits for that process and
answers with its exit code (negative for a signal); anything else starts one in a fork and answers with its
process id. The forks are whole processes, to be killed, and so are their workers. A process that hangs is
ended, and its standard error says where it was.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time

HANGING_SECONDS = 480  # less than a test may take, so that the test can tell


def serve(begin):
    """Answer until nobody asks any more; ``begin`` takes a request and gives an exit code, in the fork."""
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            answer = _exit_code(request, HANGING_SECONDS)
            if answer is None:
                os.kill(request, signal.SIGABRT)  # faulthandler writes where its threads are
                answer = _exit_code(request, 10)
            if answer is None:
                os.kill(request, signal.SIGKILL)
                answer = _exit_code(request)
        else:
            answer = os.fork()
            if answer == 0:
                faulthandler.enable()
                code = begin(request)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)  # taking torch apart costs a second
        print(answer, flush=True)
    os._exit(0)


def _exit_code(pid, seconds=float("inf")):
    """Of a child, once it has ended; None if it has not within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, 0 if seconds == float("inf") else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


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
            while os.getsid(self.pid) != self.pid:  # as Popen returns: whoever ends it kills its session
                time.sleep(0.001)
            self._code = None

        def wait(self, timeout=float("inf")):
            """The exit code, as of a ``subprocess.Popen``."""
            if self._code is None:
                self._code = _exit_code(self.pid, timeout)
            if self._code is None:
                raise subprocess.TimeoutExpired("worker", timeout)
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
