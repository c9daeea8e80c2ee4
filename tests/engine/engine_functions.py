"""Functions that worker processes import by name."""

import os
import signal
import time

time.sleep(float(os.environ.get("SLOW_IMPORT", "0")))
if "NO_IMPORT" in os.environ:
    raise MemoryError("no room for this module")


def work(payload):
    """Do as the payload says; print on the way, which must not reach the protocol."""
    print("noise on standard output")
    what, value = payload
    if what == "square":
        time.sleep(0.01)
        return {"value": value * value, "half": value / 2, "threads": os.environ["OMP_NUM_THREADS"]}
    if what == "big":
        return {"text": "x" * value}
    if what == "sleep":
        time.sleep(value)
        return {"slept": value}
    if what == "mark":
        folder, seconds = value
        open(os.path.join(folder, str(os.getpid())), "w").close()
        time.sleep(seconds)
        return {"slept": seconds}
    if what == "gpu":
        time.sleep(value)
        return {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}
    if what == "die":
        os._exit(3)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "die-once":
        marker = value
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"second": True}
    if what == "malformed":
        from intruscope.errors import MalformedInput

        raise MalformedInput("got rubbish, expected sense", remedy="send sense", file="a", tensor="b")
    if what == "no-memory":
        raise MemoryError
    if what == "no-memory-in-torch":
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 128849018880 bytes. Error code 12 (Cannot allocate memory)"
        )
    if what == "unpicklable":
        raise type("Local", (Exception,), {})("from nowhere")
    raise AssertionError(what)
