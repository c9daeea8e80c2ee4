"""A study's page in a real browser: it draws the pictures that were given, under its policy, at any width."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from simulated_study import SIZE, study

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from browser import find_browser, look

from intruscope.plots.study import study_pictures
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.report.study_charts import pictures_data
from intruscope.report.study_page import study_page
from intruscope.studies.judge import judge, study_rows
from intruscope.studies.measure import CONTROLS

NAMES = {control: INTERVENTIONS[control].title for control in CONTROLS}
ASK, ASK_PRINT = (
    (Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("ask_study.js", "ask_print.js")
)
HOSTILE = "</script><script>window.hacked=1</script>\u202e"
MOST_BYTES = 3_000_000


def page_of(records):
    rows = study_rows("mini", records)
    pictures = study_pictures(rows, NAMES)
    return study_page("mini", records, judge("mini", records), rows, pictures), pictures


@pytest.fixture(scope="module")
def made():
    return page_of(study(seeds=(0, 1)))


def test_the_page_of_a_whole_study_is_small_and_holds_nothing_that_runs_but_its_own():
    page, _ = page_of(study())
    assert len(page.encode()) < MOST_BYTES / 3
    assert page.count("<script") == 2
    assert "<img" not in page
    policy = page.split('Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "img-src" not in policy


def test_every_picture_has_its_words_in_the_document_without_a_script(made):
    page, pictures = made
    for picture in pictures:
        figure = page.split(f'id="picture-{picture.name}"')[1].split("</figure>")[0]
        assert f"Compare {picture.about.figure}." in figure
        assert "Differences:" in figure
        for claim in picture.about.claims:
            assert f'href="#{claim}"' in figure
            assert f'href="#picture-{picture.name}"' in page.split(f'id="{claim}"')[1].split("</article>")[0]


def test_a_name_stays_a_name(made):
    """A task's name is a folder's, a matrix' a file's."""
    _, pictures = made
    (rates,) = [picture for picture in pictures if picture.kind == "rates"]
    panel = replace(rates.panels[0], title=HOSTILE)
    (data,) = pictures_data([replace(rates, panels=(panel,))])
    assert data["panels"][0]["title"].endswith("\\u202e")
    records = study(recipes=("rates",), seeds=(0,))
    page, _ = page_of({key: {**each, "task": HOSTILE} for key, each in records.items()})
    assert "<script>window" not in page


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_the_page_in_a_browser(made, tmp_path, width, dark):
    find_browser()
    page, pictures = made
    seen = look(page, ASK, tmp_path, width=width, dark=dark)
    answer = seen.answer
    assert seen.console == []
    assert (answer["drawn"], answer["hacked"]) == ("yes", "undefined")
    assert answer["overflow"] <= 0
    if width == 1280:
        assert max(answer["scrolled"]) <= 0  # the table of arms fits
    assert answer["background"] == ("rgb(20, 23, 27)" if dark else "rgb(251, 250, 248)")
    assert answer["pictures"] == [[each.name, len(each.panels)] for each in pictures]
    for given, shown in zip(answer["lines"], answer["shown"], strict=True):
        assert [sorted(panel) for panel in shown] == [sorted(panel) for panel in given]
    (rates,) = [each for each in pictures if each.kind == "rates"]
    points = next(each for each in rates.panels[0].lines if each.name == "LoRA r 8").points
    # More is drawn higher, and a higher rate further right.
    along = [x for x, _ in answer["places"]]
    up = [y for _, y in answer["places"]]
    assert along == sorted(along)
    by_count = sorted(range(len(points)), key=lambda i: -points[i].y)
    assert by_count == sorted(range(len(points)), key=lambda i: up[i])
    assert min(y for _, y in answer["full"]) > max(up)
    assert answer["tip"] == points[0].tooltip
    for words in ("minilm-mlm, sst2: lora, rank 16, alpha 8", "rate 0.004, seed", "intruders", "forgetting"):
        assert words in answer["mark"]
    assert answer["stops"] == 1
    assert answer["focused"].startswith("full, rate ")
    assert answer["walked"].startswith("full, rate ")
    assert answer["walked"] != answer["focused"].replace("\n", "; ")
    assert (answer["hidden"], answer["back"]) == (0, 6)
    assert answer["unmoved"] == answer["places"]
    assert answer["map"].startswith(f"full: {SIZE} base and {SIZE} tuned vectors")
    assert answer["cell"] == "base vector 1, tuned vector 1\n|cosine| 0.97"
    assert answer["links"] == []


@pytest.mark.browser
def test_on_paper_no_table_is_wider_than_its_page_and_no_picture_higher(tmp_path):
    """A browser shrinks every page by the widest table of all, and cuts a picture that is too high."""
    find_browser()
    page, pictures = page_of(study())
    answer = look(page, ASK_PRINT, tmp_path, width=730).answer
    assert answer["size"] == "12px"
    assert answer["overflow"] == []
    assert len(answer["pictures"]) == len(pictures)
    assert [each for each in answer["pictures"] if each[1] > 1] == []
