"""Every benchmark at its smaller default, one after another: ``make bench``."""

from __future__ import annotations

import subprocess
import sys


def main() -> None:
    for module, options in {
        "verdicts": ["--shapes", "300x300", "1100x1100"],
        "growth": ["--widths", "1024", "2048", "4096"],
        "speed": ["--matrices", "4", "--repeats", "1"],
        "llama7b": [],
        "repair_peft": ["--width", "2048", "--matrices", "4", "--repeats", "1"],
        "wrong_base": ["--seeds", "2"],
        "forgetting": ["--repeats", "1"],
        "watch": ["--steps", "50"],
    }.items():
        print(f"== {module}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *options], check=True)


if __name__ == "__main__":
    main()
