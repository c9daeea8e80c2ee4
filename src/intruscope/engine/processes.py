"""A worker process as its parent sees it: started, sent tasks, and ended.

The other end is :mod:`intruscope.engine.worker`.
"""

from __future__ import annotations

import contextlib
import io
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self

from intruscope.engine.worker import receive, send

if TYPE_CHECKING:
    from collections.abc import Mapping


_PATIENCE_SECONDS = 2.0


@dataclass
class WorkerProcess:
    """A child process that answers payloads with the results of its function.

    Attributes:
        process: Leader of a session of its own, so that everything it starts ends with it.
        errors: Its standard error.
    """

    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    @classmethod
    def start(cls, function: str, environment: Mapping[str, str]) -> Self:
        """Start a worker of ``package.module:name``; its first message is ``("ready", None)``.

        Raises:
            OSError: it cannot be started.
        """
        with contextlib.ExitStack() as undo:
            errors = undo.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "intruscope.engine.worker", function],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
            undo.pop_all()  # from here on it is closed with its worker
        return cls(process=process, errors=errors)

    @property
    def output(self) -> IO[bytes]:
        """What a selector waits for."""
        assert self.process.stdout is not None
        return self.process.stdout

    def send(self, payload: Any) -> None:
        """Send a payload; a dead worker is noticed by the next read."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            send(self.process.stdin, payload)

    def receive(self) -> Any:
        """The next message; raises EOFError if the worker has ended."""
        # Unbuffered: a selector would not see the part of a second message that a buffer holds.
        assert isinstance(self.process.stdout, io.BufferedReader)
        try:
            return receive(self.process.stdout.raw)
        except EOFError:
            with contextlib.suppress(subprocess.TimeoutExpired):  # for an exit code of its own
                self.process.wait(_PATIENCE_SECONDS)
            raise

    def has_output(self, timeout: float | None = 0.0) -> bool:
        """Whether it sends something, or ends, within this many seconds (None: wait for it)."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            return bool(selector.select(timeout))

    def end(self) -> str:
        """Kill it with everything that it started, and return how it ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
        self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, self.errors.tell() - 2000))
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        self.errors.close()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += ", perhaps because memory ran out"
        return f"its worker ended with {how}" + (f" ({last[0]})" if last else "")
