"""The parts of a step by a stand-in that moves the clock, and what the real thing is fed."""

from itertools import islice

import pytest
import transformers

from intruscope.profiling.records import Phases, Shape
from intruscope.profiling.stepping import random_batches, timed_step

SHAPE = Shape(6, 20)


class Device:
    """Work is queued; only waiting moves the clock, as on an accelerator."""

    def __init__(self, is_queued):
        self.time, self.queued, self.is_queued, self.calls = 50.0, 7.0, is_queued, []

    def clock(self):
        return self.time

    def _work(self, name, seconds):
        self.calls.append(name)
        self.queued += seconds
        if not self.is_queued:
            self.synchronize()

    def forward(self, batch):
        self._work(f"forward {batch}", 1.0)

    def backward(self):
        self._work("backward", 2.0)

    def update(self):
        self._work("update", 0.5)

    def synchronize(self):
        self.time += self.queued
        self.queued = 0.0


@pytest.mark.parametrize("is_queued", [True, False])
def test_each_part_gets_its_own_time_and_none_of_what_was_before(is_queued):
    device = Device(is_queued)
    found = timed_step(device, "batch", device.clock)
    assert found == Phases(1.0, 2.0, 0.5) and found.step == 3.5
    assert device.calls == ["forward batch", "backward", "update"]


def config(**options):
    return transformers.BertConfig(vocab_size=50, **options)


def drawn(head, shape=SHAPE, count=40, seed=3, **options):
    return list(islice(random_batches(config(**options), head, shape, device="cpu", seed=seed), count))


def test_batches_are_random_and_the_same_for_all():
    first, again, other = drawn("causal"), drawn("causal"), drawn("causal", seed=4)
    ids = [batch["input_ids"] for batch in first]
    assert all((a == b["input_ids"]).all() for a, b in zip(ids, again, strict=True))
    assert not (ids[0] == other[0]["input_ids"]).all() and not (ids[0] == ids[1]).all()
    seen = {int(word) for each in ids for word in each.flatten()}
    assert seen == set(range(50))
    assert all(batch["attention_mask"].all() and batch["input_ids"].shape == (6, 20) for batch in first)


def test_labels_are_what_the_head_is_asked():
    for batch in drawn("causal"):
        assert (batch["labels"] == batch["input_ids"]).all()
    masked = drawn("masked")
    share = sum(int((b["labels"][:, 1:] != -100).sum()) for b in masked) / (40 * 6 * 19)
    assert share == pytest.approx(0.15, abs=0.02)
    assert all((b["labels"] != -100).any() for b in drawn("masked", Shape(1, 2)))
    classes = {int(label) for batch in drawn("classifier", num_labels=3) for label in batch["labels"]}
    assert classes == {0, 1, 2}
    scores = drawn("classifier", num_labels=1)[0]["labels"]
    assert scores.is_floating_point() and scores.unique().numel() == 6
