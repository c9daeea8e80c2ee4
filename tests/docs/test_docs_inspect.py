"""The page on inspecting adapters: its example runs, and its findings are those of the code."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from intruscope.cli.main import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
SOURCES = [*(ROOT / "src" / "intruscope" / "inspect").glob("*.py"), ROOT / "src/intruscope/adapters/alone.py"]


def test_every_option_of_the_page_exists():
    known = {option for parameter in app.commands["inspect"].params for option in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - {"--max-lora-rank"} <= known  # vLLM's


def test_every_finding_of_the_code_is_on_the_page():
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    codes = set(re.findall(r'code="([a-z-]+)"', source)) | {"non-finite", "out-of-range"}
    assert len(codes) > 10
    assert codes == {code for code in re.findall(r"`([a-z]+-[a-z-]+)`", TEXT) if code in codes}


def test_the_example_runs(tmp_path, capsys):
    folder = tmp_path / "adapter"
    folder.mkdir()
    key = "base_model.model.model.layers.0.mlp.up_proj"
    tensors = {f"{key}.lora_A.weight": torch.eye(2, 3), f"{key}.lora_B.weight": torch.eye(5, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(example.replace("path/to", str(tmp_path)), "inspect.md", "exec"), {"__name__": "example"})
    name, rank, effective, largest = capsys.readouterr().out.split()
    assert name == "model.layers.0.mlp.up_proj"
    assert (int(rank), round(float(effective), 6), round(float(largest), 6)) == (2, 2.0, 3.0)
