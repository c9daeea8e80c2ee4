"""The verdict on C26 on simulated runs: it holds where it is so, falls where it is not, or stays open."""

import pytest
from simulated_runs import runs

from intruscope.studies.claims_attribution import c26
from intruscope.studies.verdicts import verdict


def spans(intruders, others, norm=0.5):
    """Two arms whose intruders and other top vectors have these shares of forgetting and gain."""
    at = {}
    for name, (forgetting, gain), weight in (
        ("intruders", intruders, norm),
        ("other top vectors", others, 0.15),
    ):
        at[f"where/{name}/norm_share"] = (weight, 0.01)
        at[f"where/{name}/forgetting_share"] = (forgetting, 0.003)
        at[f"where/{name}/gain_share"] = (gain, 0.003)
    return {"lora_r8": at, "lora_r16": at}


@pytest.mark.parametrize(
    ("arms", "outcome"),
    [
        (spans((0.6, 0.4), (0.15, 0.15)), "holds"),
        (spans((0.4, 0.6), (0.25, 0.15)), "does not hold"),
        (spans((0.6, 0.4), (0.3, 0.15)), "holds in part"),
        (spans((0.5, 0.5), (0.15, 0.15)), "no effect"),
        (spans((0.005, 0.004), (0.2, 0.15), norm=0.01), "not testable here"),
    ],
)
def test_the_verdict_is_what_was_planted(arms, outcome):
    assert verdict(c26(runs(arms))).outcome == outcome


def test_without_runs_or_with_runs_that_do_not_add_up_it_stays_open():
    assert verdict(c26([])).outcome == "undecided"
    rows = [{"arm": "lora_r8", "task": "a", "seed": seed, "status": "ok", "where": {}} for seed in range(5)]
    assert verdict(c26(rows)).outcome == "undecided"
