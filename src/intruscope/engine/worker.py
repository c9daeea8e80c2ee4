"""A worker process: reads tasks from standard input, writes results to a private copy of standard output.

Started as ``python -m intruscope.engine.worker FUNCTION``. It ends with its parent: on Linux the kernel sees
to that, and elsewhere the end of its input does.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import signal
import struct
import sys
from typing import IO, TYPE_CHECKING, Any

from intruscope.errors import allocation_failure

if TYPE_CHECKING:
    import io

_PR_SET_PDEATHSIG = 1


def send(stream: IO[bytes], message: Any) -> None:
    """Write one length-prefixed pickle."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


def receive(stream: IO[bytes] | io.RawIOBase) -> Any:
    """Read one length-prefixed pickle and not a byte more; raises EOFError at the end of the stream."""
    (length,) = struct.unpack("<Q", _exactly(stream, 8))
    return pickle.loads(_exactly(stream, length))  # noqa: S301 - only ever from our own parent or child process


def _exactly(stream: IO[bytes] | io.RawIOBase, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = stream.read(count)
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def main() -> None:
    """Serve tasks until the input ends."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the function prints must not reach the protocol, which keeps a private copy of the pipe.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    source = sys.stdin.buffer
    send(output, ("ready", None))  # deadlines count from here
    while True:
        try:
            payload = receive(source)
        except EOFError:
            return
        send(output, answer(function, payload))


def answer(function: Any, payload: Any) -> tuple[str, Any]:
    """Call a function: ``("done", result)``, or ``("error", exception)`` with one that can be pickled.

    Args:
        function: Of one argument.
        payload: The argument.
    """
    try:
        return ("done", function(payload))
    except Exception as error:
        exhausted = allocation_failure(
            error, remedy="lower --workers or --memory, so that fewer matrices are in memory at once"
        )
        if exhausted is not None:
            return ("error", exhausted)
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own object, to see that it survives
        except Exception:
            return ("error", RuntimeError(f"{type(error).__name__}: {error}"))
        return ("error", error)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            sys.exit(0)


if __name__ == "__main__":
    main()
