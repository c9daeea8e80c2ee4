"""The page as bytes: inert data, a policy that fits its content, nothing from outside."""

import base64
import hashlib
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import report_cases as cases

from intruscope.report import page_data as page_data_module
from intruscope.report.html import write_html
from intruscope.report.page_data import page_data
from intruscope.weights.matrices import CoverageEntry, Finding

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror='hacked=1'>&{{ 7*7 }}\x00\u202e\ud800\u2028"
)
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


class Tags(HTMLParser):
    """Start tags with their attributes, and the texts of the blocks that must not be parsed."""

    def __init__(self):
        super().__init__()
        self.tags, self.raw, self.inside = [], [], None

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag if tag in ("script", "style") else None
        if self.inside:
            self.raw.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.raw[-1][2] += data


def page(tmp_path, reports, *, title="A title", notes=()):
    target = tmp_path / "page.html"
    write_html(reports, target, title=title, notes=notes)
    return target.read_bytes().decode("utf-8")


def parsed(text):
    parser = Tags()
    parser.feed(text)
    parser.close()
    return parser


def block(text, kind):
    """The text of the data block, the page's script or its style."""
    for tag, attributes, content in parsed(text).raw:
        if {"data": attributes.get("id") == "data", "script": tag == "script" and not attributes}.get(
            kind, tag == kind
        ):
            return content
    raise AssertionError(kind)


def hostile_report():
    settings = cases.scan().settings
    matrix = cases.matrix(random.Random(1), HOSTILE, HOSTILE, 0, intruders=2, settings=settings, map_size=4)
    finding = Finding(code=HOSTILE, severity="error", message=HOSTILE, matrix=HOSTILE)
    report = cases.scan(
        layers=1,
        extra=(replace(matrix, findings=(finding,)),),
        findings=(finding,),
        coverage=(CoverageEntry(tensor=HOSTILE, origin="tuned", status="skipped", reason=HOSTILE),),
        base=HOSTILE,
        tuned=HOSTILE,
    )
    return replace(report, environment={HOSTILE: HOSTILE})


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    return page(
        tmp_path_factory.mktemp("page"),
        [(HOSTILE, hostile_report())],
        title=HOSTILE,
        notes=[(HOSTILE, HOSTILE)],
    )


def test_hostile_names_add_no_tag(hostile_page, tmp_path):
    benign = page(tmp_path, [("a", cases.scan(layers=1))], title="b", notes=[("c", "d")])
    assert [tag for tag, _ in parsed(hostile_page).tags] == [tag for tag, _ in parsed(benign).tags]
    assert hostile_page.count("</script>") == 2
    assert "{{ 7*7 }}" in hostile_page  # a template in a name is not run either


def test_hostile_characters_are_escaped_once(hostile_page):
    assert not set(hostile_page) & {"\x00", "\u202e", "\u2028"}
    data = json.loads(block(hostile_page, "data"))
    escaped = HOSTILE.replace("\x00", "\\x00").replace("\u202e", "\\u202e").replace("\ud800", "\\ud800")
    escaped = escaped.replace("\u2028", "\\u2028")
    (report,) = data["reports"]
    assert report["label"] == report["base"] == escaped
    assert report["matrices"][-1]["name"] == report["matrices"][-1]["kind"] == escaped
    assert report["coverage"]["lines"][-1][0] == escaped
    assert [escaped, escaped] in report["environment"]
    assert report["findings"][0][1:] == [escaped] * 3


def test_the_data_block_holds_nothing_that_html_reads(hostile_page):
    data = block(hostile_page, "data")
    assert not set(data) & set("<>&")
    assert data.isascii()
    assert "NaN" not in data
    assert "Infinity" not in data


def test_the_policy_fits_the_content(hostile_page):
    (policy,) = [
        attributes["content"]
        for tag, attributes in parsed(hostile_page).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]

    def digest(text):
        return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()

    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest(block(hostile_page, 'style'))}'",
        "script-src": f"'sha256-{digest(block(hostile_page, 'script'))}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_policy_stands_before_all_that_it_rules(hostile_page):
    assert hostile_page.index("Content-Security-Policy") < hostile_page.index("<style>")


def test_nothing_comes_from_outside(hostile_page):
    assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w[^\s\"']*", hostile_page)) <= {SVG_NAMESPACE}
    for tag, attributes in parsed(hostile_page).tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert "src" not in attributes
        assert attributes.get("href", "#main") == "#main"
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")]


def test_the_script_makes_no_html_and_no_inline_style(hostile_page):
    script = block(hostile_page, "script")
    for forbidden in (
        "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "cssText",
        "fetch(", "XMLHttpRequest", "import(", "localStorage",
    ):  # fmt: skip
        assert forbidden not in script, forbidden
    assert not re.search(r"setAttribute\(\s*[\"']style|\bstyle:", script)


def test_the_script_fits_into_a_page(hostile_page):
    script = block(hostile_page, "script")
    assert "</" not in script
    assert "<!--" not in script
    assert len(script) < 60_000


def test_figures_on_the_page_are_those_of_the_records():
    report = cases.scan(11, layers=2, side="both", null=True, maps=3)
    (shown,) = page_data([("label", report)])["reports"]
    found = sum(m.sides[0].num_intruders for m in report.matrices)
    touched = sum(m.sides[0].num_intruders > 0 for m in report.matrices)
    assert shown["headline"] == {
        "intruders": found, "candidates": 140, "touched": touched, "matrices": 14,
        "chance": f"{report.totals.chance.expected:.1f}",
    }  # fmt: skip
    for given, matrix in zip(shown["matrices"], report.matrices, strict=True):
        for side, told in zip(matrix.sides, given["sides"], strict=True):
            assert told["side"] == side.side
            assert told["intruders"] == side.num_intruders == told["verdicts"].count("i")
            assert told["lowest"] == pytest.approx(min(side.alignment_lower), rel=1e-5)
            assert told["lower"] == pytest.approx(side.alignment_lower, rel=1e-5)
            assert told["upper"] == pytest.approx(side.alignment_upper, rel=1e-5)
            assert [m and m[0] for m in told["matches"]] == [m and m.base_index + 1 for m in side.matches]
            assert base64.b64decode(told["map"]["levels"]) == bytes(side.similarity.levels)
        rank = matrix.update.effective_rank
        assert given["rank"][:3] == pytest.approx([rank.value, rank.low, rank.high], rel=1e-5)
        assert given["rank"][3] == rank.method
    top = dict(shown["curves"])[10]
    at_half = next(point for point in top if point[0] == 0.5)
    assert at_half[1:] == [found, 0, 140]
    chance = report.totals.chance
    assert shown["null"] == [chance.expected, chance.low, chance.high, 140]
    assert chance.expected == pytest.approx(sum(m.sides[0].null.mean for m in report.matrices))


def test_certificates_have_their_letters():
    report = cases.scan(layers=1)
    side = replace(
        report.matrices[0].sides[0],
        certificates=("proved", "probabilistic", "dense", *["proved"] * 7),
    )
    report = replace(report, matrices=(replace(report.matrices[0], sides=(side,)),))
    (shown,) = page_data([("label", report)])["reports"]
    assert shown["matrices"][0]["sides"][0]["certificates"] == "pbd" + "p" * 7


def test_maps_stop_at_the_limit(monkeypatch):
    monkeypatch.setattr(page_data_module, "MAX_MAP_BYTES", 3 * 36 + 10)
    reports = [("a", cases.scan(1, layers=1, maps=6)), ("b", cases.scan(2, layers=1, maps=6))]
    shown = page_data(reports)["reports"]
    maps = [matrix["sides"][0]["map"] for report in shown for matrix in report["matrices"]]
    assert [each if isinstance(each, str) else "here" for each in maps] == ["here"] * 3 + ["omitted"] * 11
    assert maps[0]["rows"] == maps[0]["columns"] == 6


def test_long_lists_of_vectors_are_cut_and_counted():
    report = cases.scan(layers=1, kinds={"q": "q_proj"}, k=300)
    (shown,) = page_data([("label", report)])["reports"]
    (side,) = shown["matrices"][0]["sides"]
    assert side["num"] == 300
    assert {len(side[name]) for name in ("lower", "upper", "verdicts", "certificates", "matches")} == {200}
    assert side["intruders"] == report.matrices[0].sides[0].num_intruders


def test_a_ledger_of_200_000_tensors_says_each_reason_once(tmp_path):
    ledger = tuple(
        CoverageEntry(tensor=f"model.layers.{i}.weight", origin="base", status="skipped", reason="said once")
        for i in range(200_000)
    )
    text = page(tmp_path, [("big", cases.scan(layers=1, coverage=ledger))])
    assert text.count("said once") == 1
    assert len(text) < 12_000_000
    (report,) = json.loads(block(text, "data"))["reports"]
    assert len(report["coverage"]["lines"]) == 200_008
    reason = report["coverage"]["lines"][-1][3]
    assert report["coverage"]["reasons"][reason] == "said once"


def test_nan_is_refused_and_leaves_nothing(tmp_path):
    report = cases.scan(layers=1)
    matrix = report.matrices[0]
    broken = replace(
        matrix, sides=(replace(matrix.sides[0], tuned_energy_fraction=float("nan")), *matrix.sides[1:])
    )
    with pytest.raises(ValueError, match="Out of range float"):
        write_html([("a", replace(report, matrices=(broken,)))], tmp_path / "page.html", title="t")
    assert not list(tmp_path.iterdir())


def test_the_same_scan_gives_the_same_page(tmp_path):
    report = cases.scan(3, layers=1)
    assert page(tmp_path, [("a", report)]) == page(tmp_path, [("a", report)])
