"""The JSON report: the contract that others read, exact both ways, never NaN."""

import json
import random
from dataclasses import replace

import pytest
import report_cases as cases

from intruscope.errors import MalformedInput
from intruscope.spectra.records import NullCount, ScanReport
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
    assert rich_report.save(tmp_path / "r.json") == tmp_path / "r.json"
    text = (tmp_path / "r.json").read_bytes().decode("ascii")
    assert json.loads(text, parse_constant=forbid) == rich_report.to_json()
    for path in (tmp_path / "r.json", str(tmp_path / "r.json")):
        assert ScanReport.load(path) == rich_report


def test_reports_of_older_versions_are_read(rich_report):
    """Before gaps and heads, counts by chance, and the outcome of gates."""
    data = rich_report.to_json()
    for entry in data["coverage"]:
        del entry["gap"], entry["head"]
    for matrix in data["matrices"]:
        for side in matrix["sides"]:
            del side["chance"]
            if side["null"] is not None:
                del side["null"]["method"]
    del data["gates"], data["settings"]["chance_trials"]
    data["totals"] = {"num_matrices": 1, "num_intruders": 2, "num_undecided": 3}
    assert ScanReport.from_json(data) == rich_report


def test_the_contract(rich_report):
    data = json.loads(json.dumps(rich_report.to_json(), allow_nan=False))
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
    counted = rich_report.to_json()["totals"]
    assert counted["num_matrices"] == len(paper) == 15
    assert counted["num_measured"] == 14
    assert counted["num_vectors"] == 140
    assert counted["num_intruders"] == sum(m.sides[0].num_intruders for m in paper if m.sides)
    assert counted["matrices_with_intruders"] == sum(m.sides[0].num_intruders > 0 for m in paper if m.sides)
    first = {name: counted["other"][name] for name in ("num_matrices", "num_intruders", "num_undecided")}
    assert first == {"num_matrices": 1, "num_intruders": 4, "num_undecided": 0}


def test_the_size_of_the_update_is_that_of_all_matrices_together(rich_report):
    updates = [m.update for m in rich_report.measured]
    totals = rich_report.totals
    norm = sum(update.frobenius_norm**2 for update in updates) ** 0.5
    assert totals.update_norm == pytest.approx(norm)
    assert totals.relative_update_norm == pytest.approx(norm / (14 * 12.0**2) ** 0.5)
    ranks = sorted(update.effective_rank.value for update in updates)
    assert (totals.effective_ranks.low, totals.effective_ranks.high) == (ranks[0], ranks[-1])
    assert totals.effective_ranks.median == pytest.approx((ranks[6] + ranks[7]) / 2)


def with_chance(report, counts, *, method="spectra"):
    """The report with a count by chance on the first side of every matrix."""

    def changed(matrix):
        mean = sum(counts) / len(counts)
        given = NullCount(
            trials=len(counts), mean=mean, low=min(counts), high=max(counts), counts=counts, method=method
        )
        return replace(matrix, sides=(replace(matrix.sides[0], null=None, chance=given), *matrix.sides[1:]))

    return replace(report, matrices=tuple(map(changed, report.matrices)))


def test_chance_adds_up_over_the_matrices():
    report = with_chance(cases.scan(layers=1), (1, 2, 1, 2))
    chance = report.totals.chance
    assert (chance.expected, chance.method) == (7 * 1.5, "spectra")
    assert chance.standard_error == pytest.approx((7 * (1 / 3) / 4) ** 0.5)
    spread = 1.96 * (7 / 3 + 7 / 12) ** 0.5
    assert (chance.low, chance.high) == pytest.approx((10.5 - spread, 10.5 + spread))
    assert report.totals.excess_over_chance == report.totals.num_intruders - 10.5


def test_rotated_updates_come_before_spectra_and_nothing_is_said_where_one_is_missing():
    spectra = with_chance(cases.scan(layers=1, null=True), (9, 9))
    rotated = replace(
        spectra,
        matrices=tuple(
            replace(m, sides=(replace(m.sides[0], null=n.sides[0].null),))
            for m, n in zip(spectra.matrices, cases.scan(layers=1, null=True).matrices, strict=True)
        ),
    )
    assert rotated.totals.chance.method == "rotated"
    assert rotated.totals.chance.expected < 7
    first = replace(spectra.matrices[0], sides=(replace(spectra.matrices[0].sides[0], chance=None),))
    assert replace(spectra, matrices=(first, *spectra.matrices[1:])).totals.chance is None
    assert cases.scan(layers=0).totals.chance is None


def test_undecided_vectors_are_counted(rich_report):
    first = rich_report.matrices[0]
    side = first.sides[0]
    verdicts = ("borderline", "degenerate", *["aligned"] * (len(side.verdicts) - 2))
    changed = replace(first, sides=(replace(side, verdicts=verdicts, num_intruders=0),))
    alone = replace(rich_report, matrices=(changed,))
    assert alone.totals.num_undecided == 2


def test_nan_is_refused_and_leaves_nothing(tmp_path):
    report = cases.scan(layers=1)
    broken = replace(
        report, matrices=(replace(report.matrices[0], base_spectral_norm=float("nan")), *report.matrices[1:])
    )
    with pytest.raises(ValueError, match="Out of range float"):
        broken.save(tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda data: data.update(schema="intruscope.scan/2"), "intruscope.scan/2"),
        (lambda data: data.update(schema="intruscope.forget/1"), "intruscope.forget/1"),
        (lambda data: data.pop("schema"), "no Intruscope report"),
        (lambda data: data.pop("coverage"), "coverage"),
        (lambda data: data["matrices"][0].pop("sides"), "sides"),
        (lambda data: data["settings"].update(epsilonn=1), "epsilonn"),
        (lambda data: data.update(matrices=7), "does not fit"),
        (lambda data: data["matrices"][2].update(layer="two"), "matrices[2].layer is 'two', not an integer"),
        (lambda data: data["matrices"][2].update(scope="some"), "matrices[2].scope is 'some', not one of"),
        (lambda data: data["matrices"][0]["sides"][0].update(num_intruders=True), "num_intruders is True"),
        (lambda data: data["matrices"][0].update(shape=[1, 2, 3]), "matrices[0].shape"),
    ],
)
def test_another_schema_is_refused_by_name(change, part, tmp_path):
    data = json.loads(json.dumps(cases.scan(layers=1).to_json()))
    change(data)
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(MalformedInput) as caught:
        ScanReport.load(tmp_path / "r.json")
    assert part in str(caught.value)
    assert "intruscope.scan/1" in str(caught.value)
    assert str(tmp_path / "r.json") in str(caught.value)


def test_not_even_an_object_is_refused():
    with pytest.raises(MalformedInput, match="no Intruscope report"):
        ScanReport.from_json([])
    with pytest.raises(MalformedInput):
        ScanReport.load("no/such/file.json")
