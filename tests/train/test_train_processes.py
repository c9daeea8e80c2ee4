"""Two processes share the work of a look, and write it once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_train_watch import assert_equals_scan, scanned
from train_models import llama

from intruscope.train.look_file import read_looks


@pytest.mark.slow
def test_two_processes_see_what_a_scan_of_their_checkpoint_finds(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
        str(Path(__file__).with_name("watched_run.py")), str(tmp_path / "run"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    _, looks = read_looks(tmp_path / "run" / "intruders" / "looks.jsonl")
    assert [look.step for look in looks] == [0, 4, 8]
    assert looks[-1].intruders
    for look in looks[1:]:
        assert_equals_scan(look, scanned(tmp_path / "base", tmp_path / "run" / f"checkpoint-{look.step}"))
