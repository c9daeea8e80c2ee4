"""The sums that pictures and pages show."""

import random

import pytest
import report_cases as cases

from intruscope.plots.series import cell_counts, curves, effective_ranks, kinds_in_order
from intruscope.spectra.records import EPSILON_GRID


@pytest.fixture(scope="module")
def report():
    settings = cases.scan(side="both").settings
    return cases.scan(
        31,
        layers=3,
        side="both",
        null=True,
        extra=(
            cases.refused("bad", 1),
            cases.matrix(
                random.Random(1), "lm_head", "head", None, intruders=9, settings=settings, scope="other"
            ),
        ),
    )


def test_measured_are_the_papers_matrices_with_a_result(report):
    assert [m.name for m in report.measured] == [m.name for m in report.matrices[:-2]]


def test_kinds_follow_the_flow_through_a_block():
    settings = cases.scan().settings
    extra = tuple(
        cases.matrix(random.Random(i), kind, kind, 0, intruders=0, settings=settings)
        for i, kind in enumerate(("other", "qkv", "kv"))
    )
    order = ["q", "k", "v", "kv", "qkv", "o", "gate", "up", "down", "other"]
    assert kinds_in_order([cases.scan(layers=1), cases.scan(layers=1, extra=extra)]) == order


def test_cells_add_what_shares_a_kind_and_a_layer():
    settings = cases.scan().settings
    experts = tuple(
        cases.matrix(random.Random(i), f"expert.{i}", "up", 7, intruders=count, settings=settings)
        for i, count in enumerate((2, 0, 5))
    )
    report = cases.scan(31, layers=2, extra=experts)
    wanted = {(m.kind, m.layer): m.sides[0].num_intruders for m in report.matrices[:-3]}
    assert cell_counts(report) == {**wanted, ("up", 7): 7}


def test_curves_recount_from_the_bounds(report):
    found = curves(report)
    assert list(found) == [1, 2, 5, 10]
    for cut, points in found.items():
        assert [point.epsilon for point in points] == list(EPSILON_GRID)
        for point in points:
            pairs = [
                (low, high)
                for m in report.measured
                for low, high in list(
                    zip(m.sides[0].alignment_lower, m.sides[0].alignment_upper, strict=True)
                )[:cut]
            ]
            assert point.num_candidates == len(pairs) == 21 * cut
            assert point.num_intruders == sum(high < point.epsilon for _, high in pairs)
            assert point.num_undecided == sum(low < point.epsilon <= high for low, high in pairs)


def test_a_small_matrix_counts_all_it_has():
    """A matrix with 3 vectors has 3 candidates at k = 5 and at k = 10, never none."""
    tiny = cases.scan(5, layers=1, kinds={"q": "q_proj"}, k=3)
    report = cases.scan(6, layers=1, kinds={"k": "k_proj"}, k=10, extra=tiny.matrices)
    candidates = {cut: points[0].num_candidates for cut, points in curves(report).items()}
    assert candidates == {1: 2, 2: 4, 3: 5, 5: 8, 10: 13}


def test_effective_ranks_of_one_matrix_are_its_own_and_of_experts_span_them():
    settings = cases.scan().settings
    experts = [
        cases.matrix(random.Random(i), f"expert.{i}", "up", 1, intruders=0, settings=settings)
        for i in range(4)
    ]
    report = cases.scan(8, layers=1, kinds={"up": "up_proj"}, extra=(*experts, cases.refused("up", 2)))
    first, second = effective_ranks(report, "up")
    alone = report.matrices[0].update.effective_rank
    assert (first.layer, first.value, first.low, first.high) == (0, alone.value, alone.low, alone.high)
    ranks = [expert.update.effective_rank for expert in experts]
    assert (second.layer, second.value) == (1, sorted(rank.value for rank in ranks)[1])
    assert (second.low, second.high) == (min(r.low for r in ranks), max(r.high for r in ranks))
    assert effective_ranks(report, "down") == []
