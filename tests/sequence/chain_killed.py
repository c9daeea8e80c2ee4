"""Runs one chain again and again, each time killed at another moment, until one is let live to the end.

A process that has torch already forks for every try, so that a start costs little. A try is killed (SIGKILL,
by itself) at one of its events: just before or after a record is journaled, by the chain, by the training's
own folder or by the scan; and just before or after a folder gets its name. Arguments: the folder of the
inputs, the chain's, and a file that gets to hold where each one died.
"""

import os
import random
import signal
import sys
from pathlib import Path

import torch
from sequence_models import planted, settings

from intruscope.engine.journal import Journal
from intruscope.forgetting.texts import read_texts
from intruscope.sequence.chain import chain

LAST = 9


def tasks():
    return [planted("ends", 0, 3, num=40), planted("middle", 1, 2, num=40)]


def run(folder, out):
    chosen = settings("lora", steps=12, rate=1e-2, save_every=4)
    text = read_texts([folder / "text.txt"])
    return chain(str(folder / "base"), tasks=tasks(), out=out, settings=chosen, text=text)


def arm(event, say):
    """Die at the n-th event of this process."""
    left = [event]

    def count(place):
        left[0] -= 1
        if left[0] == 0:
            os.write(say, f"{place}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def around(cls, name, place):
        original = getattr(cls, name)

        def wrapped(self, first, *rest, **named):
            count(f"before {place(self, first)}")
            found = original(self, first, *rest, **named)
            count(f"after {place(self, first)}")
            return found

        setattr(cls, name, wrapped)

    around(
        Journal, "append", lambda journal, key: key if "/" in key else f"{journal.folder.parent.name} {key}"
    )
    around(Path, "rename", lambda _, target: f"naming {Path(target).name}")


def main():
    folder, out, places = map(Path, sys.argv[1:])
    say = os.open(places, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    torch.set_num_threads(1)
    generator = random.Random(0)
    for _ in range(200):
        # From the second event on, so that every try gets further than the one before.
        event = generator.randint(2, LAST)
        child = os.fork()
        if child == 0:
            arm(event, say)
            run(folder, out)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            sys.exit(code)
        assert not (out / "chain.json").exists()


if __name__ == "__main__":
    main()
