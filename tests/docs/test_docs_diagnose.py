"""The page on diagnosing: its example runs, its options exist, and its schema is the code's."""

import re
import sys
from pathlib import Path

import pytest

from intruscope.cli.main import app
from intruscope.diagnose import records

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8")


def test_every_option_of_the_page_exists():
    known = {
        option
        for verb in ("diagnose", "forget", "repair")
        for p in app.commands[verb].params
        for option in p.opts
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) <= known
    assert records.SCHEMA in TEXT


@pytest.mark.filterwarnings("ignore")
def test_the_example_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "forgetting"))
    from forgetting_models import TEXT as GENERAL
    from forgetting_pairs import causal_pair

    causal_pair(tmp_path)
    (tmp_path / "lora").rename(tmp_path / "adapter")
    (tmp_path / "general.txt").write_text(GENERAL * 3, encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(example.replace("path/to", str(tmp_path)), "diagnose.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "forgot"
    assert printed[1].startswith("The loss on the text rose by")
    assert printed[-1].startswith("skipped: fixes no task was given")
    for name in ("forgetting_models", "forgetting_pairs"):
        sys.modules.pop(name)
