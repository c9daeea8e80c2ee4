"""Examples of one length go together: each once, in an order that only the seed and the epoch decide."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tune_models import without_dropout, write_bert, write_choices

from intruscope.forgetting.tasks import load_task
from intruscope.train.data import Examples
from intruscope.train.sampling import LengthOrder, num_tokens
from intruscope.train.settings import TuneSettings
from intruscope.train.tune import tune

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
EXAMPLES = 48


class Stopped(Exception):
    """Ends a run from its progress."""


def rows(lengths):
    return Examples([{"input_ids": [7] * length} for length in lengths])


def padded(order, lengths, batch):
    """Numbers that a pass computes, padding included."""
    parts = [order[first : first + batch] for first in range(0, len(order), batch)]
    return sum(len(part) * max(lengths[i] for i in part) for part in parts)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200),
    batch=st.integers(1, 16),
    seed=st.integers(0, 2**31),
)
def test_every_example_is_taken_once_and_the_longest_first(lengths, batch, seed):
    order = LengthOrder(rows(lengths), batch=batch, seed=seed)
    taken = list(order)
    assert sorted(taken) == list(range(len(lengths)))
    assert lengths[taken[0]] == max(lengths)  # so that a batch without room is known at the first step
    assert list(order) == taken
    assert list(LengthOrder(rows(lengths), batch=batch, seed=seed)) == taken


def test_padding_shrinks_and_epochs_and_seeds_differ():
    lengths = torch.randint(4, 60, (1600,), generator=torch.Generator().manual_seed(0)).tolist()
    order = LengthOrder(rows(lengths), batch=16, seed=5)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    order.set_epoch(0)
    assert list(order) == first != second
    assert list(LengthOrder(rows(lengths), batch=16, seed=6)) not in (first, second)
    assert first != sorted(range(1600), key=lambda i: -lengths[i])
    needed, drawn = sum(lengths), padded(torch.randperm(1600).tolist(), lengths, 16)
    assert padded(first, lengths, 16) < 1.05 * needed < 1.5 * needed < drawn


def test_the_length_of_multiple_choice_is_that_of_its_longest_ending():
    assert num_tokens({"input_ids": [[1, 2], [1, 2, 3, 4], [1]]}) == 4
    assert num_tokens({"input_ids": [1, 2, 3]}) == 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return without_dropout(write_bert(folder / "base")), write_choices(folder / "choices.jsonl", EXAMPLES)


def settings(**changes):
    usual = {
        "method": "lora", "epochs": 2, "batch": 8, "rate": 5e-3, "save_every": 4, "watch_every": 0,
        "group_by_length": True,
    }  # fmt: skip
    return TuneSettings(**(usual | changes))


def test_a_run_stopped_in_its_second_epoch_goes_on_with_the_same_batches(files, tmp_path):
    base, task = str(files[0]), load_task(files[1])

    def until_step_10(event):
        if event.done == 10:
            raise Stopped

    whole = tune(base, out=tmp_path / "whole", settings=settings(), data=task)
    stopped = tmp_path / "stopped"
    with pytest.raises(Stopped):
        tune(base, out=stopped, settings=settings(), data=task, on_progress=until_step_10)
    assert (stopped / "checkpoints" / "checkpoint-8").is_dir()
    resumed = tune(base, out=stopped, settings=settings(), data=task)
    first, second = (load_file(run.model / "adapter_model.safetensors") for run in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    at_random = tune(base, out=tmp_path / "random", settings=settings(group_by_length=False), data=task)
    other = load_file(at_random.model / "adapter_model.safetensors")
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_batch_in_parts_takes_the_same_examples(files, tmp_path):
    losses = []
    for parts in (1, 4):
        out = tmp_path / f"parts{parts}"
        chosen = settings(accumulate=parts, epochs=1)
        report = tune(str(files[0]), out=out, settings=chosen, data=load_task(files[1]))
        assert report.steps == math.ceil(EXAMPLES / 8)
        log = json.loads((out / "run.json").read_text())["log"]
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-3)
