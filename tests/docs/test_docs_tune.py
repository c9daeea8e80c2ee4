"""The page on tune: its tasks, options and numbers are those of the code."""

import json
import re
from pathlib import Path

from intruscope.cli.main import app
from intruscope.forgetting.named_tasks import _EVERY, _TASKS, FOLDER_VARIABLE
from intruscope.train.encoding import MASKED_SHARE
from intruscope.train.recipes import PAPER
from intruscope.train.settings import TuneSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tune.md").read_text(encoding="utf-8")


def test_the_table_has_every_task_with_its_classes_files_and_dataset():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", TEXT, re.M)
    assert [name for name, *_ in rows] == list(_TASKS)
    for name, classes, files, hub in rows:
        task = _TASKS[name]
        if task.classes:
            assert tuple(classes.split(", ")) == task.classes
        else:
            assert "choices" in classes
        assert re.findall(r"`([^`]+)`", files) == list(dict.fromkeys(task.files))
        assert ("split here" in files) == (task.about is not None) == (task.files[0] == task.files[1])
        assert hub.split(",")[0] == task.hub[0].split(":")[0].split("@")[0]
    assert "divisible by ten" in TEXT and _EVERY == 10
    assert FOLDER_VARIABLE in TEXT


def test_every_option_exists():
    commands = app.commands
    known = {
        option
        for name in ("tune", "forget", "sweep")
        for parameter in commands[name].params
        for option in parameter.opts
    }
    launchers = {"--multi_gpu", "--nproc_per_node"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", TEXT)) <= known | launchers
    assert commands["tune"].params and any(p.envvar == FOLDER_VARIABLE for p in commands["tune"].params)


def test_its_numbers_are_those_of_the_recipe():
    words = " ".join(TEXT.split())
    assert f"{PAPER.epochs} epochs, batch {PAPER.batch}, up to {PAPER.max_length} tokens" in words
    assert f"{PAPER.warmup:.0%} warm-up" in words and PAPER.schedule in words
    assert PAPER.full_rate == 1e-5 and "full fine-tuning at 1e-5" in words
    assert PAPER.alpha_per_rank == 2 and "alpha = 2 * rank" in words
    assert PAPER.alpha_times_rate == 2.4e-3 and "alpha * lr = 2.4e-3" in words
    assert f"masked: {MASKED_SHARE:.0%}" in words


def test_the_figures_of_replay_are_those_of_the_benchmark():
    results = json.loads((ROOT / "benchmarks" / "results" / "replay.json").read_text())
    found = re.findall(
        r"^\| (?:LoRA|full) \| .+ \| ([\d.]+) \| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \|$", TEXT, re.M
    )
    figures = ("task_loss", "forgetting", "low", "high")
    assert found == [tuple(f"{run[name]:.3f}" for name in figures) for run in results["runs"]]
    assert f"a task loss of {results['base_task_loss']:.3f}" in " ".join(TEXT.split())
    assert f"the default is {TuneSettings(method='lora').replay_weight}" in " ".join(TEXT.split())
