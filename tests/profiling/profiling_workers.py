"""Stand-ins for the process of a setting: steps of known length, deaths, and sleeps."""

import os
import signal
import time

from intruscope.profiling.records import Build, Built, Failed, Phases, Warm, Warmed

_STATE = {"name": "", "visits": 0}


def answer(request):
    """Full takes a second, LoRA nine tenths of it, the last block half; nothing is waited for."""
    if isinstance(request, Build):
        _STATE["name"] = request.candidate.name
        return Built(num_trained=7, num_matrices=3, runtime_bytes=100, loaded_bytes=150)
    name = _STATE["name"]
    factor = 0.5 if name.startswith("last") else 0.9 if name.startswith("lora") else 1.0
    if isinstance(request, Warm):
        resident, tensors = (int(mebibytes * 2**20 * factor) for mebibytes in (100, 80))
        return Warmed(step_seconds=0.05 * factor, peak_bytes=100 + resident, tensor_bytes=tensors)
    _STATE["visits"] += 1
    noise = 1.0 + 0.001 * (_STATE["visits"] % 3)
    return Phases(*(factor * noise * part for part in (0.5, 0.3, 0.2)))


def dies_warming(request):
    """One setting is killed, as by a system short of memory, in its first steps; another finds no memory."""
    if isinstance(request, Warm) and _STATE["name"] == "lora-r4-all-linear":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(request, Warm) and _STATE["name"] == "lora-r2-all-linear":
        return Failed("no memory (12345 bytes more were asked for)")
    return answer(request)


def dies_measuring(request):
    """LoRA ends in its third visit."""
    if _STATE["name"].startswith("lora") and _STATE["visits"] == 2:
        os._exit(3)
    return answer(request)


def full_dies(request):
    """Full fine-tuning does not fit."""
    if isinstance(request, Warm) and _STATE["name"].startswith("full"):
        return Failed("no memory (99 GiB more were asked for)")
    return answer(request)


def all_die(request):
    """Nothing fits."""
    answer(request)
    return Failed("no memory (99 GiB more were asked for)")


def unequal(request):
    """The second copy of full fine-tuning is a tenth slower, as on a machine that is not the same twice."""
    found = answer(request)
    if isinstance(found, Phases) and _STATE["name"] == "full-again":
        return Phases(*(1.1 * part for part in found))
    return found


def sleeps(request):
    """Never answers in time, once it is built."""
    if not isinstance(request, Build):
        time.sleep(600)
    return answer(request)


def slow(request):
    """A step takes two weeks."""
    found = answer(request)
    return Warmed(step_seconds=1e6, peak_bytes=200, tensor_bytes=50) if isinstance(request, Warm) else found
