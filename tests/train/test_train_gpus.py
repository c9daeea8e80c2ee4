"""Several GPUs without a launcher: one is used, the batch is the planned one, and the user is told."""

from __future__ import annotations

import pytest
import torch

from intruscope.cli.checks import note_idle_gpus
from intruscope.studies.pool import _gpus
from intruscope.train.plan import training_arguments

PLAN = {
    "accumulate": 2,
    "processes": 1,
    "batch": 16,
    "steps": 10,
    "rate": 1e-3,
    "schedule": "linear",
    "warmup": 0.06,
    "weight_decay": 0.0,
    "group_by_length": False,
    "bf16": False,
    "seed": 0,
    "save_every": 5,
    "eval_every": None,
}


def seen(monkeypatch, count):
    """What transformers asks of torch; there is no GPU behind it."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_step_takes_the_planned_batch_whatever_is_there(count, monkeypatch, tmp_path):
    from transformers import TrainingArguments

    seen(monkeypatch, count)
    plain = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8)
    assert plain.train_batch_size == 8 * count  # what has to be prevented
    found = training_arguments(PLAN, tmp_path, 100)
    assert found.n_gpu == 1
    assert found.train_batch_size * found.gradient_accumulation_steps == 16


def test_the_user_is_told_of_idle_gpus_only_where_there_are(monkeypatch, capsys):
    for count, world, told in ((0, "1", False), (1, "1", False), (4, "1", True), (4, "4", False)):
        seen(monkeypatch, count)
        monkeypatch.setenv("WORLD_SIZE", world)
        note_idle_gpus("start all")
        assert (
            "uses one of 4 GPUs; to use all of them, start it with: start" in capsys.readouterr().err
        ) is told


@pytest.mark.parametrize(
    ("count", "shown", "expected"),
    [
        (0, None, ()),
        (1, None, ()),
        (1, "7", ()),
        (3, None, ("0", "1", "2")),
        (2, "5,GPU-8a1b", ("5", "GPU-8a1b")),
        (1, "5,99", ()),  # torch stops at the first that is not there
    ],
)
def test_runs_of_a_study_are_spread_over_what_is_shown(count, shown, expected, monkeypatch):
    seen(monkeypatch, count)
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert _gpus() == expected
