"""The page on guidance: its examples run, its options exist, its figures are the published ones."""

import json
import re
import sys
from pathlib import Path

import pytest

from intruscope.cli.main import app
from intruscope.guidance.records import SCHEMA

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guidance.md"
TEXT = PAGE.read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def test_every_option_of_the_page_exists():
    known = {
        option
        for name in ("guide", "forget", "sweep", "repair")
        for parameter in app.commands[name].params
        for option in parameter.opts
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) <= known
    assert SCHEMA in TEXT
    assert "AutoLoRA" not in TEXT


@pytest.mark.filterwarnings("ignore")
def test_the_examples_run(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "forgetting"))
    from forgetting_models import TEXT as HELD_OUT
    from forgetting_pairs import causal_pair

    causal_pair(tmp_path)
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "bias": "none"}))
    (tmp_path / "lora").rename(tmp_path / "adapter")
    (tmp_path / "heldout.txt").write_text(HELD_OUT, encoding="utf-8")
    known = {"__name__": "example"}
    for example in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(compile(example.replace("path/to", str(tmp_path)), "guidance.md", "exec"), known)
    shown = capsys.readouterr().out.splitlines()
    assert "It was a bright cold day" in shown[0]
    assert re.fullmatch(r"\+0\.\d{3} nats per token with guidance", shown[-1])
    for name in ("forgetting_models", "forgetting_pairs"):
        sys.modules.pop(name)


def test_the_figures_are_the_published_ones():
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.guidance import table
    finally:
        sys.path.remove(str(ROOT))
    record = json.loads((RESULTS / "guidance.json").read_text())
    shown = TEXT.split("<!-- table -->\n")[1].split("\n<!-- end -->")[0]
    assert shown == "\n".join(table(record["runs"]))
    speed = json.loads((RESULTS / "guidance_speed.json").read_text())
    for row in speed["rows"]:
        ratio = row["guided_over_both_processor"]["median"]
        assert ratio < 1.10
        assert f"{100 * (ratio - 1):.0f}% more" in " ".join(TEXT.split())
