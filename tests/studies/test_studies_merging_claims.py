"""M1 to M3 on simulated sets: each holds where it is so, falls where the contrary is, or stays open."""

import numpy as np
import pytest
from simulated_merges import ALONE, HALF, sets

from intruscope.studies.claims_merging import RULES, SUM, at_strength, chosen, kept, m1, m2, m3
from intruscope.studies.verdicts import verdict

CASES = {
    "M1": (m1, {"gain": 0.15}, {"gain": -0.15}),
    "M2": (m2, {}, {"merged_only": 0.02, "null_merged_only": 30.0}),
    "M3": (m3, {}, {"informative": None}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("place", "wanted"), [(1, "holds"), (2, "does not hold")])
def test_a_claim_follows_the_truth(name, place, wanted):
    judge, settings = CASES[name][0], CASES[name][place]
    found = verdict(judge(sets(**settings)))
    assert found.outcome == wanted, found.reason


@pytest.mark.parametrize("name", CASES)
def test_without_sets_or_with_diverged_ones_a_claim_stays_open(name):
    judge, so, _ = CASES[name]
    diverged = [{**row, "status": "diverged"} for row in sets(**so)]
    for rows in ([], diverged, sets(**so, seeds=(0,)), [{**row, "arm": "same_start"} for row in sets(**so)]):
        found = verdict(judge(rows))
        assert (found.outcome, "not measured" in found.reason) == ("undecided", True)


def test_rules_that_do_not_differ_from_the_sum_are_rarely_called_better():
    held = [verdict(m1(sets(seed=seed))).outcome in ("holds", "holds in part") for seed in range(40)]
    assert np.mean(held) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 40)


def test_figures_without_information_beyond_the_norm_are_rarely_called_predictive():
    held = [
        verdict(m3(sets(informative=False, seed=seed))).outcome in ("holds", "holds in part")
        for seed in range(100)
    ]
    assert np.mean(held) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)


def test_an_advantage_is_told_in_the_accuracy_of_the_adapter_alone():
    statement = m1(sets(0.1, seeds=range(12)))[0]
    assert statement.estimate.estimate == pytest.approx(0.1 / ALONE, abs=0.015)
    assert statement.estimate.low < 0.1 / ALONE < statement.estimate.high


def test_examples_that_all_sets_share_keep_an_interval_wide():
    """Three sets that are right on the very same examples say nothing of other examples."""
    rows = sets(0.1)
    twins = [{**rows[0], "seed": seed} for seed in range(3)]
    estimate = m1(twins)[0].estimate
    # A difference of two independent shares over 200 examples, three tasks, two sizes at most.
    error = np.sqrt(2 * 0.7 * 0.3 / HALF / 2 / 3) / ALONE
    assert estimate.high - estimate.low > 2 * 2 * error


def test_the_strength_is_chosen_on_one_half_and_reported_on_the_other():
    row = sets(0.0, best=0.3)[0]
    for merge in row["merges"]:  # the other half would choose otherwise
        merge["chosen_on"] = dict.fromkeys(merge["chosen_on"], 0.9 if merge["strength"] == 1.0 else 0.1)
    assert {chosen(row, rule, 2)["strength"] for rule in RULES} == {1.0}
    assert chosen(row, "mean", 3) is at_strength(row, SUM, 3, 1 / 3)
    for merge in row["merges"]:
        merge["chosen_on"] = dict.fromkeys(merge["chosen_on"], 0.5)
    assert chosen(row, SUM, 2)["strength"] == 0.3  # of equals the weakest


def test_a_task_that_no_adapter_learned_does_not_count():
    rows = sets(0.15)
    estimate = m1(rows)[0].estimate
    for row in rows:
        row["parts"]["c"]["learned"] = False
    fewer = m1(rows)[0].estimate
    assert (estimate.num_tasks, fewer.num_tasks) == (3, 2)
    for row in rows:
        for part in row["parts"].values():
            part["learned"] = False
    assert m1(rows)[0].estimate is None


def test_what_is_kept_counts_from_the_floor_and_from_the_majority():
    row = sets()[0]
    merge = {"score": {"a": 0.68, "text": -3.2}}
    assert kept(row, merge, "a") == pytest.approx(0.8)
    assert kept(row, merge, "a", above_majority=True) == pytest.approx(0.18 / 0.35)
    # Half of the way from the base's loss to the adapter's.
    row["parts"]["text"] = {"score": -3.0, "floor": -3.4, "majority": None}
    assert kept(row, merge, "text") == kept(row, merge, "text", above_majority=True) == pytest.approx(0.5)
