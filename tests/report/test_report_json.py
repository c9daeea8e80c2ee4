"""The JSON report: the contract that others read, exact both ways, never NaN."""

import json
import random
from dataclasses import replace

import pytest
import report_cases as cases

from intruscope.errors import MalformedInput
from intruscope.report.json_report import from_json, to_json, totals, write_json
from intruscope.weights.matrices import CoverageEntry, Finding

HOSTILE = "</script>\x00\u202e=cmd()\x1b[31m\ud800"


@pytest.fixture(scope="module")
def rich_report():
    """Everything a report can hold: both sides, maps, a null, findings, refused, names from hell."""
    settings = cases.scan(side="both").settings
    return cases.scan(
        5,
        layers=2,
        side="both",
        maps=6,
        null=True,
        complete=False,
        extra=(
            cases.refused(HOSTILE),
            cases.matrix(
                random.Random(3), "lm_head", "head", None, intruders=4, settings=settings, scope="other"
            ),
        ),
        findings=(Finding(code="wrong-base-suspected", severity="warning", message=HOSTILE, matrix=HOSTILE),),
        coverage=(CoverageEntry(tensor=HOSTILE, origin="adapter", status="skipped", reason="a vector"),),
        base=HOSTILE,
    )


def forbid(constant):
    pytest.fail(f"the report holds {constant}")


def test_a_written_report_comes_back_equal(rich_report, tmp_path):
    write_json(rich_report, tmp_path / "r.json")
    text = (tmp_path / "r.json").read_bytes().decode("ascii")
    assert from_json(json.loads(text, parse_constant=forbid)) == rich_report
    assert json.loads(text) == to_json(rich_report)


def test_a_report_from_before_gaps_and_heads_were_told_is_read(rich_report):
    data = to_json(rich_report)
    for entry in data["coverage"]:
        del entry["gap"], entry["head"]
    assert from_json(data) == rich_report


def test_the_contract(rich_report):
    data = json.loads(json.dumps(to_json(rich_report), allow_nan=False))
    assert data["schema"] == "intruscope.scan/1"
    assert set(data) >= {"settings", "matrices", "coverage", "totals", "environment"}
    assert len(data["matrices"]) == len(rich_report.matrices)
    for given, matrix in zip(data["matrices"], rich_report.matrices, strict=True):
        assert given["name"] == matrix.name
        assert given["shape"] == list(matrix.shape)
        assert (given["kind"], given["layer"], given["scope"]) == (matrix.kind, matrix.layer, matrix.scope)
        assert given["singular_values"] == list(matrix.singular_values)
        if not matrix.sides:
            assert given["verdicts"] == given["alignment_lower"] == given["certificates"] == []
            assert given["num_intruders"] == 0
            assert given["update"] is None
            continue
        left = matrix.sides[0]
        assert given["alignment_lower"] == list(left.alignment_lower)
        assert given["alignment_upper"] == list(left.alignment_upper)
        assert given["verdicts"] == list(left.verdicts)
        assert given["certificates"] == list(left.certificates)
        assert given["num_intruders"] == left.verdicts.count("intruder")
        rank = matrix.update.effective_rank
        assert given["update"]["effective_rank"] == {
            "value": rank.value, "low": rank.low, "high": rank.high, "method": rank.method
        }  # fmt: skip
        assert given["update"]["frobenius_norm"] == matrix.update.frobenius_norm
        assert given["update"]["spectral_norm"] == matrix.update.spectral_norm
    assert data["coverage"][-1] == {
        "tensor": HOSTILE, "origin": "adapter", "status": "skipped", "reason": "a vector", "matrices": [],
        "gap": False, "head": None,
    }  # fmt: skip


def test_totals_count_the_first_side_of_the_papers_scope(rich_report):
    paper = [m for m in rich_report.matrices if m.scope == "paper"]
    counted = totals(rich_report)
    assert counted["num_matrices"] == len(paper) == 15
    assert counted["num_intruders"] == sum(m.sides[0].num_intruders for m in paper if m.sides)
    assert counted["other"] == {"num_matrices": 1, "num_intruders": 4, "num_undecided": 0}


def test_undecided_vectors_are_counted(rich_report):
    first = rich_report.matrices[0]
    side = first.sides[0]
    verdicts = ("borderline", "degenerate", *["aligned"] * (len(side.verdicts) - 2))
    changed = replace(first, sides=(replace(side, verdicts=verdicts, num_intruders=0),))
    alone = replace(rich_report, matrices=(changed,))
    assert totals(alone)["num_undecided"] == 2


def test_nan_is_refused_and_leaves_nothing(tmp_path):
    report = cases.scan(layers=1)
    broken = replace(
        report, matrices=(replace(report.matrices[0], base_spectral_norm=float("nan")), *report.matrices[1:])
    )
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(broken, tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda data: data.update(schema="intruscope.scan/2"), "intruscope.scan/2"),
        (lambda data: data.pop("schema"), "no schema"),
        (lambda data: data.pop("coverage"), "coverage"),
        (lambda data: data["matrices"][0].pop("sides"), "sides"),
        (lambda data: data["settings"].update(epsilonn=1), "epsilonn"),
        (lambda data: data.update(matrices=7), "does not fit"),
    ],
)
def test_another_schema_is_refused_by_name(change, part):
    data = json.loads(json.dumps(to_json(cases.scan(layers=1))))
    change(data)
    with pytest.raises(MalformedInput) as caught:
        from_json(data)
    assert part in str(caught.value)
    assert "expected intruscope.scan/1; write the file again" in str(caught.value)


def test_not_even_an_object_is_refused():
    with pytest.raises(MalformedInput, match="no schema"):
        from_json([])
