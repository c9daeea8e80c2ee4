"""CSV that no spreadsheet runs, and Parquet that reads back equal."""

import csv
import random
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import report_cases as cases

from intruscope.errors import UsageError
from intruscope.records import tables
from intruscope.spectra.vectors import COLUMNS

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)"]
CONTROLS = {"\t=1": "\\t=1", "\r=1": "\\r=1", "a\nb": "a\\nb", "a\x00b": "a\\x00b", 'a"b,c': 'a"b,c'}


@pytest.fixture(scope="module")
def report():
    settings = cases.scan(side="both").settings
    named = [
        cases.matrix(random.Random(i), name, "q", None, intruders=2, settings=settings)
        for i, name in enumerate([*FORMULAS, *CONTROLS])
    ]
    return cases.scan(4, layers=2, side="both", extra=(*named, cases.refused()))


def rows(report):
    return list(report.rows())


def write_csv(report, path):
    tables.write_csv(report.columns, report.rows(), path)


def write_parquet(report, path):
    tables.write_parquet(report.columns, report.rows(), path)


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_row_for_every_matrix_side_and_vector(report):
    assert len(list(rows(report))) == 20 * 23
    assert {row[0] for row in rows(report)} == {m.name for m in report.matrices if m.sides}


def test_csv_holds_every_number_exactly(report, tmp_path):
    write_csv(report, tmp_path / "r.csv")
    lines = read_csv(tmp_path / "r.csv")
    assert list(lines[0]) == list(COLUMNS)
    assert len(lines) == 460
    matrix = report.matrices[0]
    for line in lines[:20]:
        side = matrix.sides[0 if line["side"] == "left" else 1]
        i = int(line["rank"]) - 1
        assert line["matrix"] == matrix.name
        assert float(line["singular_value"]) == matrix.singular_values[i]
        assert float(line["alignment_lower"]) == side.alignment_lower[i]
        assert float(line["alignment_upper"]) == side.alignment_upper[i]
        assert line["verdict"] == side.verdicts[i]
        assert line["certificate"] == side.certificates[i]
        assert line["alignment_certificate"] == side.alignment_certificates[i]
        match = side.matches[i]
        assert line["base_rank"] == ("" if match is None else str(match.base_index + 1))
        assert line["base_index"] == ("" if match is None else str(match.base_index))
        assert line["relative_change"] == ("" if match is None else repr(match.relative_change))


def test_formulas_are_defused_and_only_they(report, tmp_path):
    write_csv(report, tmp_path / "r.csv")
    lines = read_csv(tmp_path / "r.csv")
    names = {line["matrix"] for line in lines}
    assert {f"'{name}" for name in FORMULAS} | set(CONTROLS.values()) <= names
    assert not [cell for line in lines for cell in line.values() if cell.startswith(tuple("=+@\t\r"))]
    assert "model.layers.0.self_attn.q_proj" in names
    # Negative numbers stay numbers.
    assert min(float(line["relative_change"] or 0) for line in lines) < 0


def test_parquet_reads_back_equal(report, tmp_path):
    write_parquet(report, tmp_path / "r.parquet")
    table = pq.read_table(tmp_path / "r.parquet")
    assert {field.name: str(field.type).replace("double", "float64") for field in table.schema} == COLUMNS
    assert [tuple(row.values()) for row in table.to_pylist()] == list(rows(report))


def test_data_frames_hold_the_same_rows(report):
    assert [tuple(row.values()) for row in report.to_arrow().to_pylist()] == rows(report)
    frame = report.to_pandas()
    assert list(frame) == list(COLUMNS)
    assert len(frame) == len(rows(report))
    assert frame["singular_value"].tolist() == [row[6] for row in rows(report)]
    intruders = frame[(frame.verdict == "intruder") & (frame.scope == "paper") & (frame.side == "left")]
    assert len(intruders) == report.totals.num_intruders


def test_without_pandas_the_error_names_the_way_out(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas, or use to_arrow"):
        report.to_pandas()


def test_lone_surrogates_do_not_stop_the_tables(report, tmp_path):
    odd = replace(report, matrices=(replace(report.matrices[0], name="a\ud800b"),))
    write_csv(odd, tmp_path / "r.csv")
    write_parquet(odd, tmp_path / "r.parquet")
    assert read_csv(tmp_path / "r.csv")[0]["matrix"] == "a\\ud800b"
    assert pq.read_table(tmp_path / "r.parquet")["matrix"][0].as_py() == "a\\ud800b"


def test_an_empty_scan_keeps_its_columns(tmp_path):
    empty = cases.scan(layers=0)
    write_csv(empty, tmp_path / "r.csv")
    write_parquet(empty, tmp_path / "r.parquet")
    assert (tmp_path / "r.csv").read_text() == ",".join(COLUMNS) + "\n"
    table = pq.read_table(tmp_path / "r.parquet")
    assert (table.num_rows, table.column_names) == (0, list(COLUMNS))
