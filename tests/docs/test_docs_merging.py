"""The page on merging: its example runs, and its options, rules and findings exist."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from intruscope.cli.main import app
from intruscope.merge.rules import RULES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "merging.md").read_text(encoding="utf-8")


def test_every_option_rule_and_finding_of_the_page_exists():
    for verb, options in re.findall(r"^intruscope (\w+)((?: .*)?)$", TEXT, re.M):
        known = {option for parameter in app.commands[verb].params for option in parameter.opts}
        named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", options.partition("#")[0]))
        assert named <= known, verb
    table = set(re.findall(r"^\| `(\w+)`(?: \(default\))? \| .* \| .* \|$", TEXT, re.M))
    assert set(RULES) <= table
    source = (ROOT / "src" / "intruscope" / "merge" / "findings.py").read_text()
    rows = TEXT.partition("| finding | meaning |")[2].partition("\n\n")[0]
    for code in re.findall(r"`([a-z]+-[a-z-]+)`", rows):
        assert f'"{code}"' in source or code == "rank-above-servers", code


def test_the_example_runs(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj"
    (tmp_path / "base").mkdir()
    weight = torch.randn(24, 16, generator=generator)
    save_file({f"{name}.weight": weight}, tmp_path / "base" / "model.safetensors")
    for label, rank in (("a", 2), ("b", 3)):
        (tmp_path / label).mkdir()
        factors = {
            f"base_model.model.{name}.lora_A.weight": torch.randn(rank, 16, generator=generator),
            f"base_model.model.{name}.lora_B.weight": torch.randn(24, rank, generator=generator),
        }
        save_file(factors, tmp_path / label / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["up_proj"]}
        (tmp_path / label / "adapter_config.json").write_text(json.dumps(config))
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(example.replace("path/to", str(tmp_path)), "merging.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "adapter [(2, 3)]"
    assert printed[1].startswith("5 ")
