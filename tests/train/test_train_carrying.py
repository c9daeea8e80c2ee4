"""A run that goes on with an earlier adapter starts from exactly what that one ended with, head apart."""

import dataclasses

import pytest
import torch
from tune_models import write_bert, write_task

from intruscope.errors import MalformedInput, UsageError
from intruscope.forgetting.tasks import load_task
from intruscope.methods.registry import find, registered
from intruscope.train.carrying import can_go_on
from intruscope.train.loading import load_for
from intruscope.train.settings import TuneSettings
from intruscope.train.tune import tune
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
GOING_ON = [method.name for method in registered() if can_go_on(method)]


def settings(method, **changes):
    return TuneSettings(**{"method": method, "batch": 8, "rate": 5e-3, "watch_every": 0, **changes})


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carrying")
    task = load_task(write_task(folder / "task.tsv"))
    three = tuple("abc"[i % 3] for i in range(len(task.labels)))
    return write_bert(folder / "base"), task, dataclasses.replace(task, labels=three)


def updates(base, task, method, folder):
    attached = find(method).load(load_for(open_model(base), task, seed=0).model, folder)
    return {name: attached.update(name) for name in attached.names}


@pytest.mark.parametrize("method", GOING_ON)
def test_every_method_that_can_goes_on_where_it_ended(method, case, tmp_path):
    base, task, other = case
    first = tune(str(base), out=tmp_path / "first", settings=settings(method, steps=3, seed=1), data=task)
    still = settings(method, steps=1, seed=2, rate=0.0)
    second = tune(str(base), out=tmp_path / "second", settings=still, data=other, start=first.model)
    before, after = updates(base, task, method, first.model), updates(base, other, method, second.model)
    assert before.keys() == after.keys()
    assert any(float(update.norm()) > 1e-4 for update in before.values())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_methods_that_save_another_form_are_refused_by_name(case, tmp_path):
    base, task, _ = case
    first = tune(str(base), out=tmp_path / "first", settings=settings("sora", steps=2), data=task)
    with pytest.raises(UsageError, match="sora cannot continue from a saved adapter"):
        tune(
            str(base), out=tmp_path / "second", settings=settings("sora", steps=1), data=task,
            start=first.model,
        )  # fmt: skip
    assert {"full", "pissa", "olora", "eva", "adalora", "chain", "rac"}.isdisjoint(GOING_ON)


def test_another_rank_is_refused(case, tmp_path):
    base, task, _ = case
    first = tune(str(base), out=tmp_path / "first", settings=settings("lora", steps=2), data=task)
    other = settings("lora", steps=1, options={"rank": 3})
    with pytest.raises(MalformedInput, match="of shape .* trained with another method or other options"):
        tune(str(base), out=tmp_path / "second", settings=other, data=task, start=first.model)
    assert not (tmp_path / "second").exists()
