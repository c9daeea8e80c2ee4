"""An executor that runs nothing: it notes what it was asked for and gives back what real runs would carry."""

from collections import Counter
from typing import ClassVar

from intruscope.engine.executors import Event, Executor
from intruscope.studies.grid import settings_of
from intruscope.studies.origins import origin_of
from intruscope.studies.scales import find_scale


class Counting(Executor):
    """Fails where it is told to; figures come of the work alone, as if every machine were alike."""

    asked: ClassVar[Counter] = Counter()
    failing: ClassVar[set] = set()
    figures: ClassVar = staticmethod(lambda work: {"count": 1})

    def __init__(self, function, *, num_workers, threads_per_worker, gpus=()):
        assert (function, threads_per_worker) == ("intruscope.studies.execute:execute", 1)

    def start(self):
        pass

    def close(self):
        pass

    def run(self, tasks):
        for task in tasks:
            work = task.payload.work
            Counting.asked[task.key] += 1
            yield Event("started", task.key)
            if work.method in Counting.failing:
                yield Event("done", task.key, {"failed": "no luck"})
                continue
            told = {
                "settings": settings_of(work),
                "origin": origin_of(work, find_scale(task.payload.scale), task.payload.inputs),
            }
            yield Event("done", task.key, {"status": "ok", "reason": None, **Counting.figures(work), **told})


def pretend(monkeypatch):
    """Put it in the place of real runs on real inputs."""
    from intruscope.studies import pool

    Counting.asked, Counting.failing = Counter(), set()
    Counting.figures = staticmethod(lambda work: {"count": 1})
    monkeypatch.setattr(pool, "LocalExecutor", Counting)
    monkeypatch.setattr(pool, "check_data", lambda scale, data: None)
    monkeypatch.setattr(pool, "inputs_of", lambda base, out, data, unpack=None: base)
    monkeypatch.setattr(pool, "digests", digests_of)
    return Counting


def digests_of(base, inputs, **changed):
    """Hashes of what a base would read."""
    tasks = dict.fromkeys([*base.tasks, *(base.turns.tasks if base.turns else ())])
    names = ["base/model.safetensors", "text", *(f"{t}/{s}" for t in tasks for s in ("train", "eval"))]
    return {name: f"hash of {base.name}'s {name}" for name in names} | changed
