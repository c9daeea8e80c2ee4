"""Held-out data scored while a run goes on: from before the first step on, text as well as tasks."""

import json

import pytest
from tune_models import write_bert, write_llama, write_task, write_text

from intruscope.errors import UsageError
from intruscope.forgetting.tasks import TextTask, load_task
from intruscope.forgetting.texts import read_texts
from intruscope.train.settings import TuneSettings
from intruscope.train.tune import tune


def settings(**changes):
    usual = {"method": "lora", "rate": 5e-3, "steps": 12, "batch": 8, "max_length": 24, "watch_every": 0}
    return TuneSettings(**{**usual, **changes})


def scored(out):
    log = json.loads((out / "run.json").read_bytes())["log"]
    return {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}


def test_a_task_is_scored_every_few_steps_and_before_the_first(tmp_path):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    report = tune(str(base), out=tmp_path / "run", settings=settings(eval_every=4), data=task, held_out=task)
    losses = scored(tmp_path / "run")
    assert list(losses) == [0, 4, 8, 12]
    assert losses[0] == pytest.approx(0.69, abs=0.1)  # a new head knows nothing: ln 2
    assert len(report.accuracy) == 4


def test_held_out_text_has_a_loss_and_it_falls(tmp_path):
    base, text = write_llama(tmp_path / "base"), write_text(tmp_path / "text.txt")
    corpus = read_texts([text])
    held_out = TextTask(name="text", corpus=corpus, sha256=corpus.sha256)
    tune(str(base), out=tmp_path / "run", settings=settings(eval_every=6), data=corpus, held_out=held_out)
    losses = scored(tmp_path / "run")
    assert list(losses) == [0, 6, 12]
    assert losses[12] < losses[6] < losses[0]
    assert losses[12] < losses[0] - 0.1


def test_a_task_beside_text_is_still_refused(tmp_path):
    base, text = write_llama(tmp_path / "base"), write_text(tmp_path / "text.txt")
    with pytest.raises(UsageError, match="a run on text has no labels"):
        tune(
            str(base),
            out=tmp_path / "run",
            settings=settings(),
            data=read_texts([text]),
            held_out=load_task(write_task(tmp_path / "task.tsv")),
        )
