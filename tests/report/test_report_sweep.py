"""A sweep's outputs: the schema, one row per cell, the same figures everywhere, names that stay names."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import find_browser, look
from PIL import Image
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "sweep"))
from sweep_cases import CONTROLS, SETTINGS, STRENGTHS, report_of, world

from intruscope.errors import OutputConflict
from intruscope.records.tables import write_parquet
from intruscope.report.sweep_page import sweep_data, write_sweep_html
from intruscope.report.sweep_plots import write_sweep_plots
from intruscope.report.sweep_tables import sweep_summary
from intruscope.report.words import printable_text
from intruscope.sweep.records import COLUMNS, SweepReport

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\u202e\x00"
ESCAPED = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\\u202e\\x00"


def removed(control, strength):
    return {"intruders": 0.3, "uniform": 0.6}.get(control, 0.5) * (1.0 - strength)


def cost(control, strength):
    return 0.1 * (1.0 - strength) ** 2


@pytest.fixture(scope="module")
def report():
    return report_of(world(removed, cost), base="models/base", tuned=HOSTILE)


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "sweep.html"
    write_sweep_html(report, path)
    return path.read_text(encoding="utf-8")


def test_the_schema_and_its_figures(report, tmp_path):
    report.save(tmp_path / "sweep.json")
    assert SweepReport.load(tmp_path / "sweep.json") == report
    assert report.recommendations[0].sentence.split(".")[0] in report._repr_html_()
    data = json.loads((tmp_path / "sweep.json").read_text())
    assert data == report.to_json()
    assert (data["schema"], data["unit"], data["metric"]) == ("intruscope.sweep/1", "nats/token", "accuracy")
    assert [(c["control"], c["strength"]) for c in data["cells"]] == [
        (control, strength) for control in CONTROLS for strength in STRENGTHS
    ]
    for cell, each in zip(data["cells"], report.cells, strict=True):
        assert cell["forgetting_change"]["estimate"] == each.forgetting_change.estimate
        assert cell["forgetting_change"]["low"] < cell["forgetting_change"]["high"]
        assert (cell["forgetting_difference"] is None) == (cell["control"] == "intruders")
    (advice,) = data["recommendations"]
    assert advice["sentence"] == report.recommendations[0].sentence
    assert [each["control"] for each in advice["matched"]] == ["matched_change", "matched_result"]
    assert data["text"]["sha256"] == "0" * 64
    assert {cell["data"] for cell in data["cells"]} == {"all"}
    figures = [each["report"] for each in (*data["choices"], *data["recommendations"])]
    assert {each["data"] for each in (*figures, *advice["matched"])} == {"evaluation half"}
    assert [half["data"] for half in data["halves"]] == ["choosing half", "evaluation half"]
    assert advice["command"] == report.recommendations[0].command
    assert advice["command"].endswith(f"--strength {advice['strength']:g}")


def test_a_row_for_every_cell(report, tmp_path):
    write_parquet(report.columns, report.rows(), tmp_path / "sweep.parquet")
    table = pq.read_table(tmp_path / "sweep.parquet")
    assert table.column_names == list(COLUMNS)
    rows = table.to_pylist()
    assert len(rows) == len(report.cells)
    for row, each in zip(rows, report.cells, strict=True):
        assert (row["control"], row["which"], row["strength"]) == (
            each.cell.control,
            each.cell.which,
            each.cell.strength,
        )
        assert row["forgetting_share"] == each.forgetting_share.estimate
        assert (row["task_change_low"], row["task_change_high"]) == (
            each.task_change.low,
            each.task_change.high,
        )
    assert rows[0]["forgetting_difference"] is None


def test_the_terminal_shows_the_advice_and_every_cell_with_its_intervals(report):
    console = Console(width=100, record=True, file=io.StringIO())
    for part in sweep_summary(report):
        console.print(part)
    text = console.export_text()
    assert report.recommendations[0].sentence.split(" to ")[0] in " ".join(text.split())
    assert "\x00" not in text
    assert "\u202e" not in text
    shown = re.findall(r"^\s+.*?([\d.]+)\s+([+−]?[\d.]+) \(.*? to .*?\)", text, re.MULTILINE)
    cells = [(float(strength), float(share.replace("−", "-"))) for strength, share in shown]
    wanted = [(c.cell.strength, round(100 * c.forgetting_share.estimate, 1)) for c in report.cells]
    assert cells[-len(wanted) :] == wanted


def test_without_forgetting_there_are_no_shares(tmp_path):
    report = report_of(world(removed, cost, forgetting=0.0))
    assert all(each.forgetting_share is None for each in report.cells)
    write_sweep_html(report, tmp_path / "page.html")
    write_sweep_plots(report, tmp_path / "plots")
    json.dumps(report.to_json(), allow_nan=False)


def test_the_page_holds_nothing_that_runs_but_its_own(page):
    assert page.count("<script") == 2
    assert HOSTILE.split("\u202e")[0] not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


ASK = (Path(__file__).parent / "ask_sweep.js").read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (420, True)])
def test_the_page_in_a_browser(page, report, tmp_path, width, dark):
    find_browser()
    seen = look(page, ASK, tmp_path, width=width, dark=dark)
    answer = seen.answer
    assert seen.console == []
    assert (answer["drawn"], answer["hacked"], answer["subtitle"]) == ("yes", "undefined", ESCAPED)
    assert answer["advice"] == [report.recommendations[0].sentence]
    assert len(answer["names"]) == 4
    assert answer["shown"] == 16
    by_place = {(c.cell.control, c.cell.strength): c for c in report.cells}
    order = sorted(answer["places"], key=lambda place: place[2])
    gains = [by_place[tuple(place[:2])].task_change.estimate for place in order]
    assert gains == sorted(gains)
    heights = sorted(answer["places"], key=lambda place: -place[3])
    shares = [-by_place[tuple(place[:2])].forgetting_share.estimate for place in heights]
    assert shares == sorted(shares)
    cell = by_place["intruders", 0.5]
    assert "strength 0.5" in answer["tip"]
    share = cell.forgetting_share
    told = f"{-100 * share.estimate:.0f}% ({-100 * share.high:.0f} to {-100 * share.low:.0f})"
    assert f"forgetting won back: {told}" in answer["tip"]
    assert answer["current"] == [["0", "0.5"]]
    assert ["Forgetting won back", told] in answer["reading"]
    assert answer["stops"] == 1
    assert answer["walked"] == ["0", "0.7"]  # from 0.9, by falling strength
    assert answer["fewer"] == 12
    assert answer["axis"][0] == "forgetting won back, nats/token ↑"
    assert len(answer["beside"]) == 2 * 2 * 4
    first = by_place["matched_change", 0.3].forgetting_difference
    assert answer["beside"][0].endswith(
        f"the edit is better by {first.estimate:.3f}".replace("-", "−")
        + f" nats/token ({first.low:.3f} to {first.high:.3f})".replace("-", "−")
    )
    assert [row[1] for row in answer["choices"]] == [
        "none" if each.strength is None else f"{each.strength:g}" for each in report.choices
    ]
    assert answer["rows"] == 16
    assert answer["overflow"] <= 0
    assert width < 1280 or answer["clipped"] == [0, 0, 0]  # no table needs a scroll bar
    (advice,) = report.recommendations
    assert answer["commands"] == [printable_text(each) for each in (advice.command, advice.shrink_command)]
    assert [row[0] for row in answer["parts"]] == ["all", "choosing half", "evaluation half"]
    assert answer["background"] == ("rgb(20, 23, 27)" if dark else "rgb(251, 250, 248)")


def test_the_picture(report, tmp_path):
    files = write_sweep_plots(report, tmp_path / "plots")
    assert files == ("tradeoff.png", "tradeoff.svg")
    assert np.asarray(Image.open(tmp_path / "plots" / "tradeoff.png").convert("L")).std() > 5
    again = tmp_path / "again"
    write_sweep_plots(report, again)
    assert (again / "tradeoff.svg").read_bytes() == (tmp_path / "plots" / "tradeoff.svg").read_bytes()
    svg = (again / "tradeoff.svg").read_text()
    for label in ("intruders turned down", "update shrunk, equal change", "tuned model", "0.3"):
        assert f">{label}<" in svg
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputConflict):
        write_sweep_plots(report, tmp_path / "file" / "plots")


def test_several_choices_of_intruders_are_told_apart():
    measured = world(removed, cost)
    cells = tuple(replace(cell, which="all") for cell in measured.cells if cell.which == "top")
    twin = replace(
        measured,
        cells=(*measured.cells, *cells),
        by_key={
            **measured.by_key,
            **{cell.key: measured.by_key[cell.key.replace("/all/", "/top/")] for cell in cells},
        },
    )
    report = report_of(twin, replace(SETTINGS, which=("top", "all")))
    assert [each.which for each in report.recommendations] == ["top", "all"]
    assert report.recommendations[1].sentence.startswith(
        "On the evaluation half of the data, turning all intruders to "
    )
    names = [each["name"] for each in sweep_data(report)["series"]]
    assert "intruders turned down (top)" in names
    assert "intruders turned down (all)" in names
    assert len(set(names)) == len(names) == 7
