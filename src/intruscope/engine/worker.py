"""A worker process: reads tasks from its standard input, writes results to a private copy of its output.

Started as ``python -m intruscope.engine.worker FUNCTION``. It dies with its parent: the kernel is asked
to see to that (Linux), and end of input means the same everywhere.
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

from intruscope.errors import ResourceExhausted, printable

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
    # Whatever the function prints must not reach the protocol: it keeps a private copy of the pipe.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    source = sys.stdin.buffer
    send(output, ("ready", None))  # from here on its time counts
    while True:
        try:
            payload = receive(source)
        except EOFError:
            return
        send(output, answer(function, payload))


def answer(function: Any, payload: Any) -> tuple[str, Any]:
    """What a function makes of a payload: ``("done", result)``, or ``("error", exception)`` that can travel.

    Args:
        function: Of one argument.
        payload: The argument.
    """
    try:
        return ("done", function(payload))
    except MemoryError as error:
        return ("error", _no_memory(error))
    except Exception as error:
        if "can't allocate memory" in str(error):  # torch's own allocator raises a plain RuntimeError
            return ("error", _no_memory(error))
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own object, to see that it survives
        except Exception:
            return ("error", RuntimeError(f"{type(error).__name__}: {error}"))
        return ("error", error)


def _no_memory(error: Exception) -> ResourceExhausted:
    return ResourceExhausted(
        f"a worker ran out of memory ({printable(error) or 'no figure given'})",
        remedy="lower --workers or --memory, so that fewer matrices are in work at once",
    )


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            sys.exit(0)


if __name__ == "__main__":
    main()
