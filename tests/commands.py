"""A command, by default ``tune``, in a process of its own, or several, started by ``command_forks.py``."""

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from forks import Server

OURS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Done:
    """What became of all processes of a run.

    Attributes:
        codes: Exit code of each, in the order of the ranks.
        stdout, stderr: What all of them said.
    """

    codes: tuple[int, ...]
    stdout: str
    stderr: str

    @property
    def returncode(self):
        """Of one process, as ``subprocess.run`` names it."""
        (code,) = self.codes
        return code

    @property
    def is_well(self):
        return not any(self.codes)


class Commands:
    """Starts, kills and waits for them; for the time of a ``with``. Each has the environment of its start."""

    def __init__(self, folder):
        self._folder = folder
        self._count = 0
        script = Path(__file__).with_name("command_forks.py")
        self._ask = Server(script, **OURS)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self._ask.__exit__(*raised)

    def start(self, *arguments, verb="tune", processes=1, script=None, memory=None):
        """Begin a verb, or a script, in so many processes; their ids and the files of their outputs.

        Each may have ``memory`` bytes of address space.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        found = []
        for rank in range(processes):
            self._count += 1
            files = [self._folder / f"{stream}-{self._count}" for stream in ("stdout", "stderr")]
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            world = {name: str(value) for name, value in world.items()}
            request = {
                "script": script and str(script),
                "arguments": [*([] if script else [verb]), *map(str, arguments)],
                "outputs": list(map(str, files)),
                "memory": memory,
                "environment": {**os.environ, **OURS, **(world if processes > 1 else {})},
            }
            found.append((self._ask(request), files))
        return found

    def wait(self, started):
        """All of them, to the end."""
        codes = tuple(self._ask(pid) for pid, _ in started)
        said = ("".join(files[place].read_text() for _, files in started) for place in (0, 1))
        return Done(codes, *said)

    def stop(self, started, number=signal.SIGKILL):
        """All of them at once, by a signal; with the usual one as a machine that goes down."""
        for pid, _ in started:
            os.kill(pid, number)  # nobody has waited for it: its id is no other process's
        return self.wait(started)

    def run(self, *arguments, **options):
        """To the end."""
        return self.wait(self.start(*arguments, **options))
