"""Run every benchmark at its small default (``make bench``). Published results are not overwritten."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.common import RESULTS


def main() -> None:
    environment = {**os.environ, "BENCHMARK_RESULTS": str(RESULTS / "small")}
    for module, options in {
        "verdicts": ["--shapes", "300x300", "1100x1100"],
        "growth": ["--widths", "1024", "2048", "4096"],
        "speed": ["--matrices", "4", "--repeats", "1"],
        "llama7b": [],
        "inspect_large": [],
        "compare_many": [],
        "extract": ["--shapes", "2048x2048", "--ranks", "16", "--matrices", "2", "--repeats", "1"],
        "merge_speed": ["--dense", "gram"],
        "merge_peers": ["--width", "256", "--repeats", "1"],
        "repair_peft": ["--width", "2048", "--matrices", "4", "--repeats", "1"],
        "wrong_base": ["--seeds", "2"],
        "odd_models": ["--families", "gpt2", "vit-gpt2", "falcon-new", "t5"],
        "forgetting": ["--repeats", "1"],
        "watch": ["--steps", "50"],
        "step_time": ["--rounds", "3", "--steps", "4"],
        "guidance_speed": ["--models", "small", "--turns", "3", "--tokens", "16"],
    }.items():
        print(f"== {module}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *options], check=True, env=environment)


if __name__ == "__main__":
    main()
