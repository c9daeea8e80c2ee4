"""The page on forgetting: its example runs, its options, protocols and messages are those of the code."""

import re
import sys
from pathlib import Path

import pytest

from intruscope.cli.main import app
from intruscope.forgetting import losses, records, windows
from intruscope.forgetting.measurement import NUM_CHECKED
from intruscope.forgetting.settings import NUM_RESAMPLES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "forgetting.md").read_text(encoding="utf-8")
WORDS = " ".join(TEXT.split())


def test_every_option_of_the_page_exists():
    (command,) = (c for name, c in app.commands.items() if name == "forget")
    known = {option for parameter in command.params for option in parameter.opts}
    ours = re.sub(r"`python examples[^`]*`", "", TEXT)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) <= known


def test_what_the_page_says_of_defaults_and_protocols():
    assert set(re.findall(r"`([a-z-]+/\d)`", TEXT)) == set(losses.PROTOCOLS.values())
    assert records.SCHEMA in TEXT
    assert f"({NUM_RESAMPLES} times)" in WORDS
    assert f"on up to {NUM_CHECKED} sequences" in WORDS
    assert f"at most {windows.DEFAULT_CONTEXT['causal']})" in WORDS
    assert f"at most {windows.DEFAULT_CONTEXT['masked']})" in WORDS
    assert round(1 / losses.MASKED_FRACTION) == 7
    assert "in seven groups" in WORDS


def test_every_message_of_the_page_is_one_of_the_code():
    source = "".join(p.read_text() for p in (ROOT / "src" / "intruscope").rglob("*.py"))
    for phrase in (
        "at least one context of",
        "not UTF-8",
        "has a vocabulary of",
        "the tokenizers disagree",
        "without a language-model head",
    ):
        assert phrase in source


@pytest.mark.filterwarnings("ignore")
def test_the_example_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "forgetting"))
    from forgetting_models import TEXT as HELD_OUT
    from forgetting_pairs import causal_pair

    causal_pair(tmp_path)
    (tmp_path / "lora").rename(tmp_path / "adapter")
    (tmp_path / "heldout.txt").write_text(HELD_OUT, encoding="utf-8")
    example, in_memory, _ = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    known = {"__name__": "example"}
    exec(compile(example.replace("path/to", str(tmp_path)), "forgetting.md", "exec"), known)
    named = known["report"]
    exec(compile(in_memory.replace("path/to", str(tmp_path)), "forgetting.md", "exec"), known)
    assert known["report"].forgetting == named.forgetting
    assert re.fullmatch(r"\+0\.\d{3} \(\+0\.\d{3} to \+0\.\d{3}\) nats per token\n", capsys.readouterr().out)
    for name in ("forgetting_models", "forgetting_pairs"):
        sys.modules.pop(name)


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_skills_runs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "forgetting"))
    from forgetting_pairs import causal_pair
    from harness_tasks import write_task

    causal_pair(tmp_path)
    (tmp_path / "lora").rename(tmp_path / "adapter")
    write_task(tmp_path, "endings", metric_list=[{"metric": "acc"}])
    example = re.findall(r"```python\n(.*?)```", TEXT, re.S)[2]
    exec(compile(example.replace("path/to", str(tmp_path)), "forgetting.md", "exec"), {"__name__": "example"})
    assert re.fullmatch(r"endings \(acc\) -?\d\.\d+ \d+ \d+ \d\.\d+\n", capsys.readouterr().out)
    for name in ("forgetting_models", "forgetting_pairs", "harness_tasks"):
        sys.modules.pop(name)
