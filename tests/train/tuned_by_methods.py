"""One process of runs by several methods, in which another takes part."""

import atexit
import sys
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import torch  # noqa: E402

from intruscope.forgetting.tasks import load_task  # noqa: E402
from intruscope.train.processes import leave  # noqa: E402
from intruscope.train.settings import TuneSettings  # noqa: E402
from intruscope.train.tune import tune  # noqa: E402


def threads():
    """Names of this process's threads, native ones too."""
    return [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    task = load_task(folder / "task.tsv")
    for method in sys.argv[2:]:
        options = {"prune_every": 2} if method == "prilora" else {}
        settings = TuneSettings(
            method=method, options=options, steps=6, batch=8, rate=5e-3, save_every=3, watch_every=0
        )
        report = tune(str(folder / "bert"), out=folder / "runs" / method, settings=settings, data=task)
        assert (report.model).is_dir()
    assert any("gloo" in name for name in threads())
    # As under load: a thread of Gloo's still has a tensor to release, holding a lock of the group's.
    sys.setswitchinterval(1000)
    tensor = torch.ones(4)
    torch.distributed.all_reduce(tensor, async_op=True)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        pass
    atexit.register((Path(folder) / f"left-{torch.distributed.get_rank()}").touch)
    leave()
    raise AssertionError("still here")
