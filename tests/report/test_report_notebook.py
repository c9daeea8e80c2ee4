"""What a notebook shows: right numbers, well-formed, nothing that runs or loads, names that stay names."""

import random
import re
from dataclasses import replace
from xml.etree import ElementTree

import report_cases as cases

from intruscope.spectra.records import NullCount
from intruscope.weights.matrices import Finding

HOSTILE = '</div><script>alert(1)</script>"\x1b\u202e'


def tree(report):
    html = report._repr_html_()
    assert not re.search(r"<script|javascript:|https?:|url\(|\son\w+=", html)
    return html, ElementTree.fromstring(html.replace("&nbsp;", " "))


def words(found):
    return " ".join(" ".join(part.itertext()) for part in found.iter() if part.tag != "style")


def test_the_headline_stands_beside_chance_and_the_size_of_the_update():
    report = cases.scan(3, layers=2)
    chance = NullCount(trials=2, mean=1.5, low=1.0, high=2.0, counts=(1, 2), method="spectra")
    report = replace(
        report,
        matrices=tuple(replace(m, sides=(replace(m.sides[0], chance=chance),)) for m in report.matrices),
    )
    _, found = tree(report)
    big = "".join(next(part for part in found.iter("div") if part.get("class") == "big").itertext())
    totals = report.totals
    assert big.startswith(f"{totals.num_intruders} intruders of 140 leading singular vectors, in ")
    assert "; by chance 21 (" in big
    assert f"{100 * totals.relative_update_norm:.0f}% of ‖W‖" in words(found)
    assert "sampled from the spectra of base and update" in words(found)


def test_the_map_and_the_table_hold_the_counts_of_the_records():
    report = cases.scan(4, layers=3)
    _, found = tree(report)
    cells = {title.text for title in found.iter("title")}
    wanted = {f"{m.kind} {m.layer}: {m.sides[0].num_intruders}" for m in report.matrices}
    assert cells == wanted
    rows = [[cell.text for cell in row.iter("td")] for row in found.iter("tr")][1:]
    most = max(report.matrices, key=lambda m: m.sides[0].num_intruders)
    assert rows[0][:2] == [most.name, str(most.sides[0].num_intruders)]
    assert len(rows) == 8


def test_warnings_are_shown_and_names_stay_names():
    settings = cases.scan().settings
    matrix = cases.matrix(random.Random(1), HOSTILE, HOSTILE, 0, intruders=9, settings=settings)
    findings = (Finding(code="c", severity="warning", message=HOSTILE),)
    report = cases.scan(layers=1, extra=(matrix,), findings=findings, complete=False, base=HOSTILE)
    html, found = tree(report)
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "This scan is incomplete" in words(found)


def test_an_empty_scan_shows_itself_too():
    _, found = tree(cases.scan(layers=0))
    assert "0 intruders" in words(found)
