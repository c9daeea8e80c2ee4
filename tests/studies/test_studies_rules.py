"""Rules that were set before the runs: what a run must have learned, and what a chain's figures are."""

import numpy as np
import pytest
from simulated_runs import runs

from intruscope.demo.unpack import unpack
from intruscope.errors import UsageError
from intruscope.forgetting.tasks import TextTask, classification_task
from intruscope.studies.chains import figures_of
from intruscope.studies.claims_forgetting import c21
from intruscope.studies.inputs import check_data, check_seeds, digests, inputs_of
from intruscope.studies.measure import _above_chance
from intruscope.studies.scales import DEMO, MINI, SMOKE


def task(num_common, num_rare):
    rows = [{"sentence": "x", "label": "a"}] * num_common + [{"sentence": "x", "label": "b"}] * num_rare
    return classification_task(rows, "t", ("sentence",), "label", classes=("a", "b"))


@pytest.mark.parametrize(
    ("right", "learned"),
    [(700, False), (725, False), (740, True), (900, True), (100, False)],
)
def test_a_run_must_beat_the_commonest_answer_by_its_interval(right, learned):
    """Of 1,000 with 70% of one class: 0.725 has an interval that still reaches down to 0.697."""
    outcomes = np.arange(1000) < right
    found = _above_chance(outcomes, task(700, 300))
    assert found["learned"] is learned
    assert (found["reason"] is None) is learned
    if not learned:
        assert "commonest answer has 0.700" in found["reason"]


def cell(stage, name, accuracy):
    return {"stage": stage, "task": name, "accuracy": {"estimate": accuracy}}


def test_figures_of_a_chain_are_the_claims():
    accuracies = [[0.5, 0.4, 0.3], [0.9, 0.5, 0.3], [0.8, 0.7, 0.3], [0.6, 0.5, 0.8]]
    stages = [
        {
            "weights": {"num_intruders": count, "num_candidates": 360},
            "transfer": {"forgetting": lost},
            "forgetting": {"change": {"estimate": nats}},
        }
        for count, lost, nats in ((2, None, 0.1), (5, 0.1, 0.2), (9, 0.25, 0.3))
    ]
    report = {
        "tasks": ["a", "b", "c"],
        "cells": [cell(s, n, v) for s, row in enumerate(accuracies) for n, v in zip("abc", row, strict=True)],
        "stages": stages,
    }
    found = figures_of(report)
    assert (found["count_first"], found["count_last"], found["candidates"]) == (2, 9, 360)
    assert found["lost"] == 0.25
    assert found["first_tasks_gain"] == pytest.approx(((0.6 - 0.5) + (0.5 - 0.4)) / 2)
    assert found["forgetting"] == 0.3
    assert found["accuracies"] == accuracies
    assert found["counts_by_stage"] == [2, 5, 9]


def test_the_choice_by_intruders_is_between_models_that_fit_alike():
    rows = runs(
        {
            f"arm{i}": {"count": 10 * i, "update_norm": i, "forgetting": i, "held_out_loss": (0.5, 0)}
            for i in range(4)
        }
    )
    assert c21(rows)[1].estimate.estimate == 1.0
    # One that fits differently has no pair, whatever it forgets.
    other = [
        {**row, "arm": "other", "held_out_loss": 0.6, "forgetting": -1.0}
        for row in rows
        if row["arm"] == "arm3"
    ]
    assert str(c21(rows + other)[1]) == str(c21(rows)[1])
    assert "not measured" in str(c21([{**row, "held_out_loss": None} for row in rows])[1])


def test_missing_data_are_named_with_their_place(tmp_path):
    with pytest.raises(UsageError, match=r"needs a data folder.*models/minilm-mlm.*--data"):
        _raise_whole(check_data, MINI, None)
    (tmp_path / "models" / "minilm-mlm").mkdir(parents=True)
    with pytest.raises(
        UsageError,
        match="lacks text/minilm_mlm_heldout.txt, tasks/fever, tasks/mnli, tasks/qqp, tasks/sst2",
    ) as error:
        check_data(MINI, tmp_path)
    assert str(tmp_path / "text" / "minilm_mlm_heldout.txt") in error.value.remedy
    check_data(SMOKE, None)


def _raise_whole(function, *given):
    """The whole message, remedy included, for a match."""
    try:
        function(*given)
    except UsageError as error:
        raise UsageError(str(error), remedy="") from None


def test_the_shipped_base_is_unpacked_once_by_who_knows_it(tmp_path):
    with pytest.raises(UsageError, match="no function to unpack it was given"):
        inputs_of(DEMO, tmp_path, None)
    found = inputs_of(DEMO, tmp_path, None, unpack=unpack)
    assert inputs_of(DEMO, tmp_path, None) == found
    assert set(digests(DEMO, found)) == {
        "base/model.safetensors", "base/config.json", "base/tokenizer.json", "base/tokenizer_config.json",
        "text", "reference/train", "reference/eval",
    }  # fmt: skip
    train, held_out = (found.task("reference", split) for split in ("train", "eval"))
    assert isinstance(held_out, TextTask)
    taught = {document.text for document in train.documents}
    assert not taught & {document.text for document in held_out.corpus.documents}


def test_seeds_that_cannot_be_told_apart_are_refused():
    for seeds in ([0, 0], [-1]):
        with pytest.raises(UsageError, match="each may occur once, and none may be negative"):
            check_seeds(seeds)
    check_seeds([3, 1])
