"""A server of :mod:`forks` for runs and studies, in one process or several.

A request is an object: ``arguments`` of the command, its verb first, or of a ``script`` if one is named;
``outputs``, the files of standard output and error; ``environment``; ``memory``, a limit in bytes or null.
"""

import gc
import os
import resource
import runpy
import signal
import sys
import traceback
from pathlib import Path

import peft  # noqa: F401 - like what follows: a run imports it
import scipy.stats  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.nn.functional
import transformers

import intruscope.train.tune  # noqa: F401
from forks import fork_workers, serve
from intruscope.cli.main import main

for name in (
    "Trainer",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForMaskedLM",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
):
    getattr(transformers, name)
gc.freeze()  # else every fork's collector copies what it looks at


def ended():
    """The exit code of what ``sys.argv`` says."""
    try:
        if sys.argv[0] == "intruscope":
            main()
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        return leaving.code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def begin(request):
    """In a fork: its world and its errors' file first."""
    os.environ.update(request["environment"])
    if request["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
    torch.set_num_threads(1)
    for number, file in enumerate(request["outputs"], start=1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
    sys.argv = [request["script"] or "intruscope", *request["arguments"]]
    return ended()


if __name__ == "__main__":
    fork_workers()
    serve(begin)
