"""The page on extraction: its examples run, and its options exist."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from intruscope.cli.main import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "extract.md").read_text(encoding="utf-8")


def run_example(text, place):
    exec(compile(text, str(place), "exec"), {"__name__": "example"})


def test_every_option_of_the_page_exists():
    commands = app.commands
    known = {option for parameter in commands["extract"].params for option in parameter.opts}
    of_others = {"--task", "--max-rank", "--sv-epsilon"}  # intruscope forget's, and mergekit's
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert named - of_others <= known
    assert {"--rank", "--energy", "--error", "--parameters", "--save-rest", "--compact"} <= named


def test_the_example_runs(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj"
    before = torch.randn(24, 16, generator=generator)
    change = torch.randn(24, 2, generator=generator) @ torch.randn(2, 16, generator=generator)
    for folder, tensor in (("base", before), ("tuned", before + change)):
        (tmp_path / folder).mkdir()
        save_file({f"{name}.weight": tensor}, tmp_path / folder / "model.safetensors")
    first, _ = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    run_example(first.replace("path/to", str(tmp_path)), "extract.md")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{name} ")
    manifest = json.loads((tmp_path / "adapter" / "intruscope_extract.json").read_text())
    assert manifest["choice"] == {"kind": "energy", "value": 0.9}
    assert manifest["matrices"][0]["rank"] in (1, 2)


def test_the_three_numbers_of_the_chain_are_one(capsys):
    _, second = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    run_example(second, "extract.md")
    numbers = [float(n) for n in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
    assert len(numbers) == 3
    assert numbers[1] > 0.1
    assert numbers == pytest.approx([numbers[1]] * 3, abs=1e-3)
