"""The page of a study: every claim beside the paper's words, foreign names escaped; the docs as made."""

import re
from pathlib import Path

import pytest
from simulated_runs import CANDIDATES

from intruscope.report.study_docs import filled, merging_filled, merging_tables, tables
from intruscope.report.study_page import study_page
from intruscope.report.study_strips import WIDTH, strip
from intruscope.studies.claims import CLAIMS
from intruscope.studies.judge import committed, judge, judge_committed, study_rows
from intruscope.studies.paper_numbers import REPORTED
from intruscope.studies.recipes import MERGING, places
from intruscope.studies.records import read_results, records_of
from intruscope.studies.scales import MINI

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "reproduction.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    works = {p.work.key: p.work for p in places(MINI) if p.recipe in ("counts", "interventions")}
    journal = {}
    for number, (key, work) in enumerate(works.items()):
        count = 0 if work.method == "full" else 12
        differs = 1e-4 * (number**2 % 7 - 2)  # runs that all agree have no interval
        cell = {
            "forgetting_share": -0.2 + differs,
            "accuracy_change": -0.004 + differs,
            "forgetting_change": -0.01 + differs,
        }
        controls = ("intruders", "matched_change", "neighbour_below")
        journal[key] = {
            "status": "ok", "reason": None, "count": count, "counts": {"0.5": count, "0.9": 2 * count},
            **CANDIDATES, "count_attention": count, "count_mlp": 0, "null_count": 3.5, "accuracy": 0.8,
            "forgetting": 0.25,
            "interventions": {c: {"0.7": dict(cell), "1.5": dict(cell)} for c in controls},
        }  # fmt: skip
        if number == 0:
            journal[key] |= {"status": "diverged", "reason": "<script>alert(1)</script>"}
    records = records_of(works, journal)
    return study_page("mini", records, judge("mini", records), study_rows("mini", records), [])


def test_every_claim_stands_beside_the_papers_words(page):
    assert set(REPORTED) == {claim.id for claim in CLAIMS}
    for claim in CLAIMS:
        article = page.split(f'id="{claim.id}"')[1].split("</article>")[0]
        assert claim.paper_version in article
        assert "The paper: " in article


def test_a_claim_that_was_run_shows_figures_intervals_and_controls(page):
    article = page.split('id="C16"')[1].split("</article>")[0]
    assert "−20 %" in article
    assert "For comparison: the control" in article
    assert "<small>n = 12, 4 tasks</small>" in article
    assert "<svg" in article
    assert "Not run" in page.split('id="C19"')[1].split("</article>")[0]


def test_a_verdict_on_part_of_a_study_is_marked_and_no_other(page):
    part, whole = (page.split(f'id="{name}"')[1].split("</article>")[0] for name in ("C13", "C16"))
    planned = len({p.work.key for p in places(MINI) if p.recipe == "rates"})
    assert " so far</span>" in part and " so far" not in whole
    assert re.search(rf"Preliminary:</b> \d+ of {planned} planned runs", part)
    assert "Preliminary" not in whole


def test_every_count_has_its_null_beside_it(page):
    table = page.split('id="arms"')[1]
    assert "by chance" in table
    assert "3.5" in table


def test_a_seed_outside_the_scales_is_in_rows_as_in_verdicts():
    works = {p.work.key: p.work for p in places(MINI, ["counts"], of_seeds=[7])}
    records = records_of(
        works, {key: {"status": "ok", "reason": None, "count": 1, **CANDIDATES} for key in works}
    )
    rows = study_rows("mini", records)
    assert {row["key"] for row in rows["counts"]} == set(works)
    assert {row["seed"] for row in rows["counts"]} == {7}
    judged = {each.claim.id: each for each in judge("mini", records)}
    assert judged["C1"].seeds == (7,)


def test_diverged_runs_are_listed_and_names_are_text(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.split('id="left-out"')[1]
    assert "<script>alert" not in page


def test_the_interventions_stand_as_in_the_papers_table(page):
    assert "−0.4 / −20.0" in page.split('id="edits"')[1]


@pytest.mark.parametrize(
    ("figure", "interval", "bounds", "inside"),
    [
        (2.0, (1.0, 3.0), (0.0, float("inf")), True),
        (-2.0, (-3.0, -1.0), (0.0, float("inf")), False),
        (0.0, (-0.1, 0.1), (-1.0, 1.0), True),
        (5.0, (4.0, 6.0), (float("-inf"), 1.0), False),
    ],
)
def test_a_strip_shows_where_the_interval_lies(figure, interval, bounds, inside):
    found = strip(figure, interval, bounds)
    assert 0 <= found["low"] <= found["x"] <= found["high"] <= WIDTH
    within = found["from_"] <= found["low"] and found["high"] <= found["to"]
    assert within is inside
    assert found["zero"] is not None


def test_the_page_of_the_docs_has_the_tables_as_they_are():
    """After a change: python -m benchmarks.reproduction rewrites them."""
    judged, _ = judge_committed()
    larger, _ = judge_committed(scale_name="midi")
    assert filled(PAGE, judged, larger) == PAGE
    for table in tables(judged, larger).values():
        assert table in PAGE
    whole = {each.claim.id for each in larger if each.verdict is not None and each.is_whole}
    cells = [line.split(" | ") for line in tables(judged, larger)["table"].splitlines()[2:]]
    assert {each[0].strip("| ") for each in cells if each[-2].strip()} == whole


def test_the_page_on_merging_has_the_tables_as_they_are():
    judged, _ = judge_committed(scale_name="merging")
    found = committed(scale_name="merging")
    rows = study_rows("merging", read_results(found[1])[0])[MERGING]
    page = (DOCS / "merging-study.md").read_text(encoding="utf-8")
    assert merging_filled(page, judged, rows) == page
    assert all(table in page for table in merging_tables(judged, rows).values())


def test_the_examples_of_the_docs_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 3
    exec(compile("\n".join(blocks), "reproduction.md", "exec"), {})


def test_the_commands_of_the_docs_exist():

    from intruscope.cli.study import study

    group = study
    for line in re.findall(r"^intruscope study (.*?)(?:#.*)?$", PAGE, re.M):
        verb, *rest = line.split()
        known = {name for parameter in group.commands[verb].params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known
