"""The page in a real browser: it draws the right numbers, obeys its policy, and a name stays a name."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import report_cases as cases
from browser import find_browser, look

from intruscope.report.html import write_html
from intruscope.weights.matrices import CoverageEntry

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\u202e\x00"
ESCAPED = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\\u202e\\x00"

HERE = Path(__file__).parent
COMMON = (HERE / "ask_common.js").read_text()


def page_of(reports, folder, **options):
    path = folder / "page.html"
    write_html(reports, path, title=options.pop("title", "Title"), **options)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def two_scans():
    settings = cases.scan(side="both").settings
    odd = cases.matrix(
        random.Random(9), HOSTILE, "q", 3, intruders=4, settings=settings, scope="other", map_size=5
    )
    first = cases.scan(21, layers=3, side="both", maps=5, null=True, extra=(odd, cases.refused("bad", 7)))
    second = cases.scan(22, layers=3, side="both", rate=0.8)
    return first, second


@pytest.fixture(scope="module")
def seen(two_scans, tmp_path_factory):
    """One visit that looks at everything and works every control."""
    find_browser()
    folder = tmp_path_factory.mktemp("browser")
    first, second = two_scans
    page = page_of([(HOSTILE, first), ("second", second)], folder, title=HOSTILE, notes=[(HOSTILE, HOSTILE)])
    script = COMMON + (HERE / "ask_everything.js").read_text()
    return look(page, script, folder)


def counts(report, side=0):
    return {
        f"{m.kind}/{m.layer}": str(m.sides[side].num_intruders)
        for m in report.matrices
        if m.scope == "paper" and m.sides
    }


def test_the_script_ran_under_its_policy(seen):
    assert seen.answer["drawn"] == "yes"
    assert seen.answer["styles"] == "rgb(251, 250, 248)"
    assert seen.console == []


def test_the_heat_map_has_a_cell_for_every_matrix_with_its_count(seen, two_scans):
    first, second = seen.answer["counts"]
    assert first.pop("q/7", "missing") == "missing"  # refused: a cell without a value
    assert first == counts(two_scans[0])
    assert second == counts(two_scans[1])
    assert [int(text.split(" of ")[0]) for text in seen.answer["big"]] == [
        sum(map(int, counts(report).values())) for report in two_scans
    ]


def test_the_heat_map_changes_its_quantity_and_side(seen, two_scans):
    for shown, right, report in zip(seen.answer["lowest"], seen.answer["right"], two_scans, strict=True):
        wanted = {
            f"{m.kind}/{m.layer}": min(m.sides[0].alignment_lower)
            for m in report.matrices
            if m.scope == "paper" and m.sides
        }
        assert {place: float(value) for place, value in shown.items() if value} == pytest.approx(
            wanted, rel=1e-5
        )
        assert right == counts(report, side=1)
    assert counts(two_scans[0]) != counts(two_scans[0], side=1)


def test_a_matrix_without_a_result_is_shown_as_such(seen):
    assert seen.answer["unknown"] == ["q, layer 7: no result"]


def test_the_keyboard_walks_and_opens(seen):
    assert seen.answer["walked"] == ["k", "1"]
    assert seen.answer["stops"] == [1, 1]
    assert seen.answer["opened"] == "model.layers.1.self_attn.k_proj"
    assert seen.answer["unnamed"] == 0


def test_the_curve_follows_k(seen, two_scans):
    for cut, shown in ((10, seen.answer["curve"]), (1, seen.answer["top1"])):
        for report, row in zip(two_scans, shown, strict=True):
            sides = [m.sides[0] for m in report.matrices if m.scope == "paper" and m.sides]
            points = [
                sum(c.num_intruders for s in sides for c in s.grid if (c.epsilon, c.k) == (epsilon, cut))
                for epsilon in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
            ]
            assert [int(cell.split("/")[0]) for cell in row] == points
            assert {cell.split("/")[1].split(" ")[0] for cell in row} == {str(cut * len(sides))}
    assert seen.answer["marks"] == 14


def test_the_strip_has_a_mark_for_every_vector(seen, two_scans):
    for shown, report in zip(seen.answer["strip"], two_scans, strict=True):
        verdicts = [v for m in report.matrices if m.scope == "paper" and m.sides for v in m.sides[0].verdicts]
        assert shown["i"] == verdicts.count("intruder")
        assert shown["a"] == verdicts.count("aligned")


def test_a_panel_for_every_kind(seen):
    assert seen.answer["panels"] == [7, 7]


def test_the_table_sorts_and_finds(seen, two_scans):
    assert "1–20 of 44" in seen.answer["numRows"]
    rows = [
        (min(m.sides[0].alignment_lower), m.name) for report in two_scans for m in report.matrices if m.sides
    ]
    assert seen.answer["fallen"][0] == max(rows)[1]
    lowest = min(rows)[1]
    assert seen.answer["risen"][0] == (ESCAPED if lowest == HOSTILE else lowest)
    assert seen.answer["sorted"] == [["Lowest alignment", "ascending"]]
    assert [row[0] for row in seen.answer["found"]] == [ESCAPED]


def test_the_details_of_a_matrix(seen, two_scans):
    side = two_scans[0].matrices[-2].sides[0]
    assert seen.answer["detail"] == ESCAPED
    facts = dict(reversed(seen.answer["facts"]))  # the left side's where both have one
    assert facts["Intruders"] == f"{side.num_intruders} of 10"
    assert facts["The list of vectors is complete but for a probability of"] == "0.000001"
    assert facts["The bounds hold but for a probability of"] == "2e-7"
    lines = [line.split("\t") for line in seen.answer["vectors"].splitlines() if line[:1].isdigit()]
    assert [line[3] for line in lines] == list(side.verdicts)
    assert [line[4] for line in lines] == list(side.certificates)
    assert [line[5] for line in lines] == [str(m.base_index + 1) if m else "–" for m in side.matches]


def test_the_similarity_map_shows_base_down_and_tuned_across(seen, two_scans):
    similarity = two_scans[0].matrices[-2].sides[0].similarity
    width, height, pixels = seen.answer["map"]
    assert (width, height) == (5, 5)
    colours = [[*seen.answer["ramp"][level], 255] for level in similarity.levels]
    assert pixels == colours
    assert [pixels[5 * (i % 5) + i // 5] for i in range(25)] != colours  # the transpose is another map
    assert seen.answer["canvases"] == 0  # hidden again


def test_names_stay_names(seen):
    assert seen.answer["intruding"] == [0, "undefined", 3]
    assert seen.document.count("<script") == 4  # two of the page, the one that asks, and its answer


def test_the_page_is_no_wider_than_its_window(seen):
    assert seen.answer["overflow"] <= 0


def test_200_000_tensors_stay_usable(tmp_path):
    ledger = tuple(
        CoverageEntry(tensor=f"t.{i}.weight", origin="base", status="skipped", reason="not trained")
        for i in range(200_000)
    )
    page = page_of([("big", cases.scan(layers=1, coverage=ledger))], tmp_path)
    script = (
        COMMON
        + """
const pager = document.querySelector("#coverage .pager"), rows = () => all("#coverage tbody tr");
const answer = { first: [rows().length, pager.querySelector("span").textContent] };
pager.querySelector("[aria-label='Last page']").click();
answer.last = rows().at(-1).textContent;
all("#coverage thead button").find(button => button.textContent === "Tensor").click();
all("#coverage thead button").find(button => button.textContent === "Tensor").click();
answer.fallen = rows()[0].textContent;
type(document.querySelector("#coverage input"), "T.199999.");
answer.found = rows().map(row => row.textContent);
type(document.querySelector("#coverage input"), "nowhere");
answer.nothing = [rows().length, pager.textContent];
answer.nodes = document.getElementsByTagName("*").length;
answer.overflow = document.documentElement.scrollWidth - innerWidth;
answer.background = getComputedStyle(document.body).backgroundColor;
return answer;
"""
    )
    seen = look(page, script, tmp_path, width=500, dark=True)
    assert seen.console == []
    assert seen.answer["first"] == [20, "1–20 of 200,008"]
    assert seen.answer["last"].startswith("t.199999.weight")
    assert seen.answer["fallen"].startswith("t.199999.weight")
    assert seen.answer["found"] == ["t.199999.weightbaseskippednot trained"]
    assert seen.answer["nothing"][0] == 0
    assert "Nothing matches." in seen.answer["nothing"][1]
    assert seen.answer["nodes"] < 6000
    assert seen.answer["overflow"] <= 0
    assert seen.answer["background"] == "rgb(20, 23, 27)"


def test_the_ledger_tells_what_was_missed_from_what_is_no_matrix(tmp_path):
    whole = CoverageEntry(tensor="score.weight", origin="tuned", status="skipped", reason="new", head="new")
    ledger = (whole, replace(whole, tensor="lost.weight", head=None, gap=True))
    page = page_of([("one", cases.scan(layers=1, coverage=ledger))], tmp_path)
    script = (
        COMMON
        + """
const box = document.querySelector("#coverage select"), answer = {};
answer.told = document.querySelector("#coverage .lead").textContent;
for (const status of ["head", "missed"]) {
  box.value = status;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  box.dispatchEvent(new Event("change", { bubbles: true }));
  answer[status] = all("#coverage tbody tr").map(row => row.textContent);
}
return answer;
"""
    )
    seen = look(page, script, tmp_path)
    assert seen.console == []
    assert seen.answer["told"].endswith("1 skipped, 1 of a head that one model alone has, 1 missed.")
    assert seen.answer["head"] == ["score.weighttunedheadnew"]
    assert seen.answer["missed"] == ["lost.weighttunedmissednew"]


def test_experts_of_a_layer_share_a_cell_and_a_mark(tmp_path):
    settings = cases.scan().settings
    experts = tuple(
        cases.matrix(random.Random(i), f"expert.{i}", "up", 1, intruders=i, settings=settings)
        for i in range(4)
    )
    page = page_of([("experts", cases.scan(3, layers=1, kinds={"up": "up_proj"}, extra=experts))], tmp_path)
    script = """
const cell = all("#heat td[data-kind]").at(-1);
const answer = { cells: cells()[0] };
cell.focus();
answer.tip = document.querySelector(".tip").textContent;
cell.click();
answer.opened = document.querySelector(".detail h3").textContent;
answer.points = layerPoints(DATA.reports[0], "up", matrix => matrix.rank);
answer.marks = all("#rank svg path.fill").length;
return answer;
"""
    answer = look(page, COMMON + script, tmp_path).answer
    assert answer["cells"]["up/1"] == "6"
    assert answer["tip"].splitlines()[:2] == [
        "up, layer 1: 4 matrices",
        "6 of 40 leading vectors are intruders",
    ]
    assert answer["opened"] == "expert.3"  # the one with the most
    ranks = [expert.update.effective_rank for expert in experts]
    shown = answer["points"][1]
    assert shown["name"] == "4 matrices of layer 1, median"
    assert shown["value"] == pytest.approx(sorted(rank.value for rank in ranks)[1], rel=1e-5)
    assert shown["low"] == pytest.approx(min(rank.low for rank in ranks), rel=1e-5)
    assert shown["high"] == pytest.approx(max(rank.high for rank in ranks), rel=1e-5)
    assert answer["marks"] == 2


def test_nothing_to_show_is_shown(tmp_path):
    empty = replace(cases.scan(layers=0, extra=()), complete=False)
    page = page_of([("empty", empty)], tmp_path)
    seen = look(
        page,
        COMMON + "return [document.documentElement.dataset.drawn, text('.said'), text('h2'), text('th')];",
        tmp_path,
    )
    assert seen.console == []
    drawn, said, headings, _ = seen.answer
    assert drawn == "yes"
    assert said[0].startswith("Nothing in the paper's scope was compared")
    assert headings == ["Matrices", "Coverage ledger", "Settings and environment"]
