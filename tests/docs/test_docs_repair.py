"""The page on repairs: its example runs, its options and controls exist, its output is as stated."""

import json
import re
from pathlib import Path

from intruscope.cli.main import app
from intruscope.repair.interventions import INTERVENTIONS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "repair.md").read_text(encoding="utf-8")


def test_every_option_and_control_of_the_page_exists():
    (command,) = (c for name, c in app.commands.items() if name == "repair")
    known = {option for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert named <= known
    listed = set(re.findall(r"`([a-z_]+)`", TEXT.partition("## Controls")[2].partition("## ")[0]))
    assert set(INTERVENTIONS) - {"intruders"} <= listed


def test_the_example_runs(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.syspath_prepend(str(ROOT / "tests" / "repair"))
    from repair_models import bases, factors, write_adapter, write_checkpoint

    write_checkpoint(tmp_path / "base", bases())
    write_adapter(tmp_path / "adapter", factors())
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(example.replace("path/to", str(tmp_path)), "repair.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert "model.layers.0.self_attn.q_proj [(2, " in printed
    assert json.loads((tmp_path / "repaired" / "intruscope_repair.json").read_text())["strength"] == 0.7
    sys.modules.pop("repair_models")
