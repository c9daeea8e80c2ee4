"""Does the page of the demo name the settings that the code uses?"""

from __future__ import annotations

from pathlib import Path

from intruscope.demo import run
from intruscope.demo.folder import MANIFEST

PAGE = (Path(__file__).parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")


def rate(value: float) -> str:
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def test_rates_steps_and_batches_are_those_of_the_code() -> None:
    table = PAGE.split("## What it does")[1].split("## What it writes")[0]
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert f"learning rate {rate(run.FULL_LEARNING_RATE)}" in lines["full"]
    assert f"rank {run.LORA_RANK}, alpha {2 * run.LORA_RANK}" in lines["LoRA"]
    assert f"learning rate {rate(run.LORA_LEARNING_RATE)}" in lines["LoRA"]
    assert f"{run.NUM_STEPS} steps of {run.BATCH} x {run.CONTEXT} tokens" in lines["both"]


def test_every_file_that_it_promises_has_a_line() -> None:
    for name in ("report.html", "figures.json", "scan-full.json", "scan-lora.json", MANIFEST):
        assert f"`{name}`" in PAGE
