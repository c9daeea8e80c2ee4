"""The page on verifying: its example runs, its options and statuses exist, its count is that of the tests."""

import ast
import json
import re
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file

from intruscope.cli.main import app
from intruscope.verify.records import ModuleStatus

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")


def test_every_option_and_status_of_the_page_exists():
    known = {option for parameter in app.commands["verify"].params for option in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) <= known
    table = TEXT.partition("| status | meaning |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`([a-z ]+)`", table)) == sorted(get_args(ModuleStatus))


def test_the_example_runs(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj"
    base, up, down = (torch.randn(s, generator=generator) for s in ((24, 16), (24, 2), (2, 16)))
    stem = f"base_model.model.{name}"
    for folder, tensors in (
        ("base", {f"{name}.weight": base}),
        ("adapter", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}),
        ("merged", {f"{name}.weight": base + 2 * up @ down}),
    ):
        (tmp_path / folder).mkdir()
        file = "adapter_model" if folder == "adapter" else "model"
        save_file(tensors, tmp_path / folder / f"{file}.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(example.replace("path/to", str(tmp_path)), "verify.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines() == ["applied False False", f"{name} applied 1.000"]


def test_the_counts_are_those_of_the_tests():
    planted = ast.parse((ROOT / "tests" / "verify" / "test_verify_planted.py").read_text())
    cases = next(
        node.value
        for node in ast.walk(planted)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CASES"
    )
    assert f"{len(cases.keys)} merges of tiny real models" in " ".join(TEXT.split())
