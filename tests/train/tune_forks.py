"""Starts processes again and again out of one that has the libraries, so that a start costs little.

Reads lines of JSON. An object (``arguments`` of the command, or of a ``script`` if one is named; ``stderr``,
a file; ``environment``) starts one in a fork and answers with its process id; a number waits for that process
and answers with its exit code (negative for a signal). The forks are whole processes, to be killed.
"""

import gc
import json
import os
import runpy
import sys
import traceback

import peft  # noqa: F401 - like what follows: a run imports it
import torch
import torch._dynamo
import torch.distributed.nn.functional
import transformers

import intruscope.train.tune  # noqa: F401
from intruscope.cli.main import main

for name in ("Trainer", "BertForSequenceClassification", "BertForMultipleChoice", "GPT2LMHeadModel"):
    getattr(transformers, name)
gc.freeze()  # else every fork's collector copies what it looks at


def ended():
    """The exit code of what ``sys.argv`` says."""
    try:
        if sys.argv[0] == "intruscope":
            main()
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        return leaving.code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                os.environ.update(request["environment"])
                torch.set_num_threads(1)
                errors = os.open(request["stderr"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
                os.dup2(errors, 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                sys.argv = [request["script"] or "intruscope", *request["arguments"]]
                code = ended()
                sys.stderr.flush()
                os._exit(code)  # taking torch apart costs a second
        print(answer, flush=True)
    os._exit(0)
