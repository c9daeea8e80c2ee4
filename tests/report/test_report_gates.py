"""Gates: every metric reads the figure it is named for, ignored findings do not count, the JSON says so."""

from dataclasses import replace

import pytest
import report_cases as cases

from intruscope.spectra.gates import METRICS, checked, parse_gates
from intruscope.spectra.records import GateOutcome, NullCount, ScanReport
from intruscope.weights.matrices import Finding


@pytest.fixture(scope="module")
def report():
    found = cases.scan(
        3,
        layers=2,
        findings=(
            Finding(code="other-base", severity="warning", message="another base"),
            Finding(code="storage-noise", severity="warning", message="noise"),
            Finding(code="note", severity="info", message="a note"),
        ),
    )
    chance = NullCount(trials=2, mean=0.5, low=0.0, high=1.0, counts=(0, 1), method="spectra")
    return replace(
        found, matrices=tuple(replace(m, sides=(replace(m.sides[0], chance=chance),)) for m in found.matrices)
    )


def test_each_metric_is_the_figure_it_is_named_for(report):
    sides = [m.sides[0] for m in report.matrices]
    count = sum(side.num_intruders for side in sides)
    assert count > 7
    wanted = {
        "intruders": count,
        "excess_over_chance": count - 14 * 0.5,
        "matrices": sum(side.num_intruders > 0 for side in sides),
        "undecided": sum(v in ("borderline", "degenerate") for side in sides for v in side.verdicts),
        "update_size": report.totals.update_norm / (14 * 12.0**2) ** 0.5,
        "energy": max(side.tuned_energy_fraction for side in sides),
        "update_energy": max(side.update_energy_fraction for side in sides),
        "warnings": 2,
    }
    assert list(wanted) == list(METRICS)
    for metric, value in wanted.items():
        (gate,) = parse_gates(f"{metric}>={value!r}")
        assert gate.outcome(report, METRICS) == GateOutcome(
            gate=f"{metric}>={value!r}", value=pytest.approx(value), tripped=True
        )
        (gate,) = parse_gates(f"{metric}>{value + 0.5}")
        assert not gate.outcome(report, METRICS).tripped


def test_ignored_codes_are_no_warnings(report):
    gates = parse_gates("warnings>0")
    assert [g.value for g in checked(report, gates, ignore=["other-base"]).gates] == [1.0]
    silent = checked(report, gates, ignore=["other-base", "storage-noise"]).gates
    assert silent == (GateOutcome(gate="warnings>0", value=0.0, tripped=False),)


def test_the_outcome_is_in_the_json_and_comes_back(report):
    found = checked(report, parse_gates("intruders>0,energy>2"))
    data = found.to_json()["gates"]
    assert [(gate["gate"], gate["tripped"]) for gate in data] == [("intruders>0", True), ("energy>2", False)]
    assert ScanReport.from_json(found.to_json()) == found
    assert found.matrices == report.matrices


def test_what_cannot_be_told_trips():
    (gate,) = parse_gates("excess_over_chance>1e9")
    assert gate.outcome(cases.scan(layers=1), METRICS) == GateOutcome(
        gate=gate.text, value=None, tripped=True
    )
