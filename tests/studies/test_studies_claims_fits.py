"""The verdict on C25 on simulated runs: it holds where it is so, falls where it is not, or stays open."""

import pytest
from simulated_runs import runs

from intruscope.studies.claims_fits import c25
from intruscope.studies.verdicts import verdict


def fit(difference, correlation, factor=0.7):
    return {
        "lora_r8": {
            "fits/1/difference": (difference, 0.01),
            "fits/1/correlation": (correlation, 0.02),
            "fits/1/mean_factor": (factor, 0.02),
            "fits/1/forgetting_share": (-0.5, 0.02),
        }
    }


@pytest.mark.parametrize(
    ("arms", "outcome"),
    [
        (fit(-0.15, -0.4), "holds"),
        (fit(0.15, 0.4), "does not hold"),
        (fit(0.0, 0.0), "no effect"),
        (fit(-0.15, -0.4, factor=1.0), "not testable here"),
    ],
)
def test_the_verdict_is_what_was_planted(arms, outcome):
    assert verdict(c25(runs(arms))).outcome == outcome


def test_without_runs_it_stays_open():
    assert verdict(c25([])).outcome == "undecided"
