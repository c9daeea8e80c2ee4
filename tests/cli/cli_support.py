"""Small models as files, the command as a process, and what its messages must look like."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

COMMAND = [sys.executable, "-m", "intruscope"]
CONFIG = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 4}'
SHAPE = (48, 40)


def name_of(layer):
    return f"model.layers.{layer}.mlp.up_proj"


def matrices(count, change=0.0, shape=SHAPE):
    """``count`` random matrices, each with a rank-one update of that size."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for layer in range(count):
        matrix = torch.randn(shape, generator=generator)
        u, v = torch.randn(shape[0], 1, generator=generator), torch.randn(1, shape[1], generator=generator)
        made[f"{name_of(layer)}.weight"] = matrix + change * u @ v
    return made


def write_model(folder, tensors):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(CONFIG)
    return folder


def run(*arguments, timeout=120, **options):
    """The command in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def invoke(*arguments):
    """The command in this process, for what starts no workers: code, output, errors."""
    from intruscope.cli.main import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv, sys.argv = sys.argv, ["intruscope", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as leaving:
        return subprocess.CompletedProcess(sys.argv, leaving.code, out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)


def assert_message(done, code, *parts):
    """One line: the identifier, every part expected, and after the semicolon something to do."""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error[")
    fact, _, remedy = done.stderr.rstrip().rpartition("; ")
    assert fact
    assert len(remedy.split()) >= 2
    for part in parts:
        assert part in done.stderr


def fingerprint(folder):
    """Content and time of change of everything below a folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def timeless(path):
    """A JSON report without what may differ between two runs of one plan."""
    report = json.loads(Path(path).read_text())
    report.pop("environment")
    for matrix in report["matrices"]:
        matrix.pop("seconds")
    return report


def eventually(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not happen in time")


def num_records(work):
    path = work / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(*arguments):
    """The command, left running."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
