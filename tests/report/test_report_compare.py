"""A comparison's page and tables: the report's figures beside their controls, and names that stay names."""

import io
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from browser import find_browser, look
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))
from cli_support import write_model
from compare_models import SHAPE, module, random_factors, write_lora

import intruscope
from intruscope.compare.records import MeasuredModel, MergeForgetting
from intruscope.compare.words import compare_sentence
from intruscope.engine.settings import RunOptions
from intruscope.forgetting.intervals import Interval
from intruscope.report.compare_page import compare_data, write_compare_html
from intruscope.report.compare_tables import compare_summary

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\u202e\x07"
ESCAPED = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\\u202e\\x07"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Three adapters with a base, the last with the A of the first and a hostile name; and a forgetting."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("page")
    generator = torch.Generator().manual_seed(0)
    write_model(
        folder / "base",
        {f"{module(layer)}.weight": torch.randn(SHAPE, generator=generator) for layer in range(3)},
    )
    factors = [random_factors(seed, layers=3) for seed in range(3)]
    factors[2] = {layer: (left, factors[0][layer][1]) for layer, (left, _) in factors[2].items()}
    for name, each in zip("abc", factors, strict=True):
        write_lora(folder / name, each, scaling=2.0)
    found = intruscope.compare(*(folder / n for n in ("base", "a", "b", "c")), options=RunOptions(workers=0))
    interval = Interval(estimate=0.25, low=0.125, high=0.5)
    models = [
        MeasuredModel(name=name, part=part, loss=interval, forgetting=interval, merge_difference=difference)
        for name, part, difference in (("a", True, interval), ("merge", False, None))
    ]
    forgetting = MergeForgetting(
        text=HOSTILE, sha256="0" * 64, protocol="causal/1", num_sequences=10, num_tokens=1000,
        base_loss=interval, models=tuple(models),
    )  # fmt: skip
    return replace(found, base=HOSTILE, merge=replace(found.merge, forgetting=forgetting))


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "compare.html"
    write_compare_html(report, path)
    return path.read_text(encoding="utf-8")


def test_the_page_holds_nothing_that_runs_but_its_own(page):
    assert page.count("<script") == 2
    assert HOSTILE.split("\u202e")[0] not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_the_data_are_the_reports_figures(report):
    data = compare_data(report)
    json.dumps(data, allow_nan=False)
    names = data["pairFields"]
    for pair, drawn in zip(report.pairs, data["pairs"], strict=True):
        for each, values in zip(pair.modules, drawn["modules"], strict=True):
            whole = data["modules"][values[0]]
            assert whole["name"] == each.name
            found = dict(zip(names, values[1:], strict=True))
            assert found["cosine"] == pytest.approx(each.cosine, rel=1e-5)
            assert found["leftAngle"] == pytest.approx(each.left_angles[0], rel=1e-5)
            assert found["rightRandom"] == pytest.approx(each.right_overlap_random, rel=1e-5)


def test_the_terminal_shows_every_pair_beside_its_nulls(report):
    console = Console(width=120, record=True, file=io.StringIO())
    for part in compare_summary(report):
        console.print(part)
    text = console.export_text()
    assert "\u202e" not in text
    assert "\x07" not in text
    flat = " ".join(text.split())
    assert compare_sentence(report) in flat
    for pair in report.pairs:
        figures = rf"{pair.a}, {pair.b}\s+{pair.cosine:.3f}\s+±{pair.cosine_random_spread:.2g}"
        assert re.search(figures.replace("-", "−"), text)
        assert re.search(
            rf"{pair.a}, {pair.b}\s+{pair.left_overlap:.3f}\s+{pair.left_overlap_random:.3f}", text
        )
    flight = report.merge.preflight
    merge = rf"merge, 0.333 of each\s+{flight.merge.num_intruders}\s.*\s{flight.merge.num_new}\s"
    assert re.search(merge, text)
    assert re.search(rf"merge of these\s+{flight.random_merge.num_intruders}\s", text)
    # Quantities and controls only.
    for word in ("safe", "compatible", "recommend", "good", "bad", "risk"):
        assert word not in flat.lower()


ASK = (Path(__file__).parent / "ask_compare.js").read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (420, True)])
def test_the_page_in_a_browser(page, report, tmp_path, width, dark):
    find_browser()
    seen = look(page, ASK, tmp_path, width=width, dark=dark)
    answer = seen.answer
    assert seen.console == []
    assert (answer["drawn"], answer["hacked"], answer["subtitle"]) == ("yes", "undefined", ESCAPED)
    assert answer["said"] == compare_sentence(report)
    assert [row[0] for row in answer["members"]] == ["a", "b", "c"]
    assert any("started from the same A" in each for each in answer["findings"])
    by_pair = {(pair.a, pair.b): pair for pair in report.pairs}
    assert [row[0] for row in answer["pairs"]] == ["a, b", "a, c", "b, c"]
    assert answer["pairs"][1][1] == f"{by_pair['a', 'c'].cosine:.4f}".replace("-", "−")
    order = [("a", "b"), ("a", "c"), ("a", "b"), ("b", "c"), ("a", "c"), ("b", "c")]
    assert answer["square"] == pytest.approx([by_pair[each].cosine for each in order])
    assert answer["rightSquare"] == pytest.approx([by_pair[each].right_overlap for each in order])
    first = by_pair["a", "b"].modules
    assert [cell[:2] for cell in answer["cosines"]] == [["up", "0"], ["up", "1"], ["up", "2"]]
    assert [cell[2] for cell in answer["cosines"]] == pytest.approx([m.cosine for m in first], rel=1e-5)
    assert answer["tip"].startswith(module(0))
    assert f"(random ±{first[0].cosine_random_spread:.2g}" in answer["tip"]
    assert [cell[2] for cell in answer["angles"]] == pytest.approx(
        [m.right_angles[0] for m in first], rel=1e-5
    )
    assert [cell[2] for cell in answer["secondAngles"]] == pytest.approx([0.0] * 3, abs=1e-7)  # the same A
    assert {cell[3] for cell in answer["secondAngles"]} == {"h8"}  # the darkest, for no angle at all
    inflations = [each.inflation for each in report.merge.modules]
    assert [cell[2] for cell in answer["inflations"][:3]] == pytest.approx(inflations, rel=1e-5)
    assert answer["sum"][0][1] == f"{report.merge.energy_ratio:.3f}"
    flight = report.merge.preflight
    counts = [*flight.parts, flight.merge, *flight.random_parts, flight.random_merge, flight.equal_norm]
    assert [int(row[1]) for row in answer["preflight"]] == [each.num_intruders for each in counts]
    assert answer["preflight"][3][4] == str(flight.merge.num_new)
    widest = max(sum(pieces) for pieces in answer["bars"])
    most = max(each.num_intruders for each in counts)
    for pieces, each in zip(answer["bars"], counts, strict=True):
        assert sum(pieces) == pytest.approx(widest * each.num_intruders / most, abs=2)
        assert pieces[1] == pytest.approx(widest * (each.num_new or 0) / most, abs=2)
    assert [row[0] for row in answer["forgetting"]] == ["a", "merge"]
    assert answer["forgetting"][0][2] == "+0.250 (0.125 to 0.500)"
    assert (answer["stops"], answer["walked"]) == (1, ["up", "1"])
    assert answer["overflow"] <= 0
    assert answer["background"] == ("rgb(20, 23, 27)" if dark else "rgb(251, 250, 248)")


def test_without_a_base_the_page_leaves_out_what_needs_it(report, tmp_path):
    from dataclasses import replace

    merge = replace(report.merge, preflight=None, forgetting=None)
    write_compare_html(replace(report, base=None, merge=merge), tmp_path / "page.html")
    data = compare_data(replace(report, base=None, merge=merge))
    assert (data["preflight"], data["forgetting"]) == (None, None)
    assert all(math.isfinite(each["norm"]) for each in data["members"])
