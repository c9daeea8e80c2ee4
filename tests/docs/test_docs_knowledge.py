"""The page on facts: its example runs; its options, defaults, categories and messages exist."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from intruscope.cli.main import app
from intruscope.knowledge.records import CATEGORIES
from intruscope.knowledge.settings import KnowledgeSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "knowledge.md").read_text(encoding="utf-8")
WORDS = " ".join(TEXT.split())


def test_every_option_category_and_default_of_the_page_exists():
    known = {option for parameter in app.commands["knowledge"].params for option in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) <= known
    table = TEXT.partition("| category | meaning |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.M)) == CATEGORIES
    defaults = {field.name: field.default for field in fields(KnowledgeSettings)}
    for name in ("num_prompts", "shots", "samples", "temperature"):
        assert f"`--{name.replace('_', '-')}` ({defaults[name]})" in WORDS, name


def test_every_message_of_the_page_is_one_of_the_code():
    source = "".join(path.read_text() for path in (ROOT / "src/intruscope/knowledge").glob("*.py"))
    for phrase in ("tokens; with", "is a masked language model", "without examples all prompts are the same"):
        assert phrase in source


@pytest.mark.filterwarnings("ignore")
def test_the_example_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "knowledge"))
    from knowledge_models import fact, names, save, write_facts

    save(tmp_path)
    write_facts(tmp_path / "facts.jsonl", [fact(name) for name in names("known")])
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(example.replace("path/to", str(tmp_path)), "knowledge.md", "exec"), {"__name__": "example"})
    first, *lost = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"lost \d+\.\d% \(\d+\.\d% to \d+\.\d%\), other prompts alone \d+\.\d%", first)
    assert len(lost) >= 6
    assert all(re.fullmatch(r"Where is known\d+ city\d \w+Known \w+ \w+", line) for line in lost)
    sys.modules.pop("knowledge_models")
