"""The figures of a chain on matrices whose answers are known by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest

from intruscope.sequence.metrics import cells, transfer
from intruscope.sequence.records import HeadFigures

HEAD = HeadFigures(
    num_examples=9, num_features=2, loss=0.1, gradient_norm=0.0, num_steps=1, converged=True
)  # fmt: skip


def outcomes(matrix, num=20):
    """Examples that make this matrix of accuracies: the first ones are right."""
    return [[np.arange(num) < round(value * num) for value in row] for row in matrix]


# Rows: the base, then after each of three tasks. Columns: the tasks, in the order of training.
MATRIX = [
    [0.50, 0.40, 0.30],
    [0.90, 0.45, 0.35],
    [0.70, 0.80, 0.55],
    [0.65, 0.85, 0.95],
]


def test_the_papers_figures_on_a_matrix_by_hand():
    right = outcomes(MATRIX)
    last = transfer(right, 3)
    assert last.average_accuracy.estimate == pytest.approx((0.65 + 0.85 + 0.95) / 3)
    assert last.backward_transfer.estimate == pytest.approx(((0.65 - 0.90) + (0.85 - 0.80)) / 2)
    # The best earlier trained stage of task 0 is its own, of task 1 the second.
    assert last.forgetting == pytest.approx(((0.90 - 0.65) + (0.80 - 0.85)) / 2)
    # Just before their own stages: task 1 at stage 1, task 2 at stage 2.
    assert last.forward_transfer.estimate == pytest.approx(((0.45 - 0.40) + (0.55 - 0.30)) / 2)
    second = transfer(right, 2)
    assert second.average_accuracy.estimate == pytest.approx((0.70 + 0.80) / 2)
    assert second.backward_transfer.estimate == pytest.approx(0.70 - 0.90)
    assert second.forgetting == pytest.approx(0.90 - 0.70)
    assert second.forward_transfer.estimate == pytest.approx(0.45 - 0.40)
    first = transfer(right, 1)
    assert (first.backward_transfer, first.forgetting, first.forward_transfer) == (None, None, None)
    assert first.average_accuracy.estimate == pytest.approx(0.90)


def test_a_chain_that_changes_nothing_transfers_nothing():
    last = transfer(outcomes([[0.5, 0.6, 0.7]] * 4), 3)
    for found in (last.backward_transfer, last.forward_transfer):
        assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)
    assert last.forgetting == 0.0 and last.average_accuracy.estimate == pytest.approx(0.6)


def test_a_later_stage_that_lifts_an_earlier_task_counts_as_the_best():
    """Chaudhry's forgetting takes the best of all earlier stages, not the task's own."""
    matrix = [[0.5, 0.5], [0.6, 0.5], [0.9, 0.8], [0.7, 0.8]]
    right = outcomes([[*row, 0.5] for row in matrix])
    assert transfer(right, 3).forgetting == pytest.approx(((0.9 - 0.7) + (0.8 - 0.8)) / 2)
    assert transfer(right, 3).backward_transfer.estimate == pytest.approx(((0.7 - 0.6) + 0.0) / 2)


def test_cells_compare_the_same_examples():
    found = cells(("a", "b", "c"), outcomes(MATRIX), [[HEAD] * 3] * 4)
    assert [(c.stage, c.task) for c in found[:4]] == [(0, "a"), (0, "b"), (0, "c"), (1, "a")]
    by_place = {(c.stage, c.task): c for c in found}
    assert by_place[0, "a"].against_baseline is None and by_place[1, "a"].against_best is None
    assert by_place[1, "a"].against_own is None and by_place[2, "b"].against_own is None
    end = by_place[3, "a"]
    assert end.accuracy.estimate == 0.65 and end.accuracy.low < 0.65 < end.accuracy.high
    assert (end.against_own.stage, end.against_best.stage, end.against_baseline.stage) == (1, 1, 0)
    assert end.against_own.difference.estimate == pytest.approx(-0.25)
    assert end.against_own.mcnemar_p == pytest.approx(binomtest(0, 5).pvalue)
    assert end.against_baseline.difference.estimate == pytest.approx(0.15)
    assert by_place[3, "b"].against_best.stage == 2
    assert by_place[3, "c"].against_own is None and by_place[3, "c"].against_best.stage == 2


def test_equal_accuracy_on_other_examples_is_seen():
    """Ten lost and ten won: no difference, and an interval that says how little that is."""
    right = outcomes([[0.5, 0.5]] * 3)
    right[2][0] = ~right[1][0]
    found = cells(("a", "b"), right, [[HEAD] * 2] * 3)[4]
    assert found.against_own.difference.estimate == 0.0 and found.against_own.difference.low < -0.3
    assert found.against_own.mcnemar_p == 1.0
    interval = transfer(right, 2).backward_transfer
    assert interval.estimate == 0.0 and interval.low < -0.2 < 0.2 < interval.high


def test_intervals_hold_what_they_should():
    """Backward transfer of -.2 over two tasks; of 80 chains drawn from it, 95% of the intervals hold it."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(80):
        own = [generator.random(90) < 0.8 for _ in range(2)]
        now = [right & (generator.random(90) < 0.75) for right in own]
        right = [[own[0]] * 3, [own[0]] * 3, [own[0], own[1], own[0]], [now[0], now[1], own[0]]]
        interval = transfer(right, 3).backward_transfer
        held += interval.low <= -0.2 <= interval.high
    assert 70 <= held < 80
