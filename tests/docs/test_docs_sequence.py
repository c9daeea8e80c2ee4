"""The page on chains: its options exist, its numbers are the code's, its example runs."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "sequence"))
from sequence_models import planted, write_base

from intruscope.cli.main import app
from intruscope.methods.registry import registered
from intruscope.sequence import records
from intruscope.sequence.heads import PENALTY
from intruscope.train.carrying import can_go_on

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "sequence.md").read_text(encoding="utf-8")
FORMATS = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())


def test_every_option_of_the_page_exists():
    (command,) = (c for name, c in app.commands.items() if name == "chain")
    known = {option: parameter for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert named <= known.keys()
    assert {"--between", "--tasks", "--head-examples", "--eval-examples", "--keep-models"} <= named
    assert f"`--head-examples` training examples ({known['--head-examples'].default})" in FLAT


def test_the_table_is_the_published_one():
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks import chain as benchmark
    finally:
        sys.path.remove(str(ROOT))
    records = benchmark.published()
    assert list(records) == list(benchmark.METHODS)
    shown = TEXT.split("<!-- table -->\n")[1].split("\n<!-- end -->")[0]
    assert shown == benchmark.table(records)


def test_numbers_and_names_are_those_of_the_code():
    assert f"penalty of {PENALTY} / 2" in FLAT
    kept = {method.name for method in registered() if can_go_on(method)}
    for title, name in (("PiSSA", "pissa"), ("OLoRA", "olora"), ("EVA", "eva"), ("AdaLoRA", "adalora")):
        assert title in FLAT and name not in kept
    assert all(method.name not in kept for method in registered() if method.source == "intruscope")


@pytest.mark.parametrize(
    "record",
    [
        records.ChainReport,
        records.StageScore,
        records.StageReport,
        records.WeightFigures,
        records.Transfer,
        records.HeadFigures,
        records.Comparison,
        records.ForgettingFigures,
        records.MatrixFigures,
    ],
)
def test_every_field_of_the_schema_is_on_the_page_of_formats(record):
    section = FORMATS.split("## A chain")[1].split("\n## ")[0]
    assert records.SCHEMA in section
    for each in fields(record):
        assert f"`{each.name}`" in section, each.name


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_example_runs(tmp_path, capsys):
    write_base(tmp_path / "base")
    for place, name in enumerate(("first", "second")):
        task = planted(name, place, 3, num=24)
        for side, file in ((task.train, f"{name}.tsv"), (task.held_out, f"{name}-dev.tsv")):
            rows = [f"{text}\t{label}" for (text, _), label in zip(side.texts, side.labels, strict=True)]
            (tmp_path / file).write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(example.replace("path/to", str(tmp_path)), "sequence.md", "exec"), {"__name__": "example"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["first", "second"]
