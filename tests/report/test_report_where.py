"""Where a fine-tune forgot: what the sentence claims, and what the page shows in a browser."""

from dataclasses import replace

import pytest
from browser import look
from rich.console import Console

from intruscope.forgetting.intervals import Interval
from intruscope.forgetting.records import ForgettingReport, ForgettingSettings
from intruscope.forgetting.where import (
    DirectionShare,
    MatrixShare,
    PathTotal,
    Share,
    SpanShare,
    VectorShare,
    WhereReport,
)
from intruscope.report.where import where_sentence, where_summary, write_where_html, write_where_plots
from intruscope.weights.matrices import Finding

HOSTILE = "h.0.</script><b>\u202e"


def around(value, width=0.02):
    return Interval(estimate=value, low=value - width, high=value + width)


def shares(name, norm, forgetting, gain, ratio=None):
    return {
        "name": name,
        "norm_share": norm,
        "forgetting_share": forgetting,
        "forgetting_interval": around(forgetting),
        "gain_share": gain,
        "gain_interval": around(gain),
        "ratio": ratio,
    }


def matrix(name, layer, kind, forgetting, ratio):
    point = {"norm_share": 0.2, "forgetting_share": forgetting, "gain_share": 0.25}
    return MatrixShare(
        **shares(name, 0.25, forgetting, 0.25, ratio),
        kind=kind,
        layer=layer,
        directions=(DirectionShare(**point),),
        vectors=(VectorShare(**point, verdict="intruder"), VectorShare(**point, verdict="aligned")),
    )


@pytest.fixture
def report():
    total = PathTotal(
        measured=0.2, attributed=0.201, unit="nats/token", num_points=4, num_groups=8, num_sequences=8
    )
    where = WhereReport(
        task="task.tsv",
        protocol="causal-cross-entropy/1",
        k=10,
        epsilon=0.5,
        total=total,
        gain_total=replace(total, unit="nats/example"),
        spans=(
            SpanShare(**shares("intruders", 0.5, 0.4, 0.3, around(1.3, 0.1))),
            SpanShare(**shares("other top vectors", 0.1, 0.2, 0.2, around(1.0, 0.1))),
            SpanShare(**shares("rest of the matrices", 0.3, 0.3, 0.3, around(1.0, 0.1))),
            SpanShare(**shares("other tensors", 0.1, 0.1, 0.2, around(0.5, 0.1))),
        ),
        matrices=(
            matrix("h.0.q", 0, "q", 0.5, around(2.0)),
            matrix("h.1.q", 1, "q", -0.1, None),
            matrix(HOSTILE, 1, "up", 0.5, around(2.0)),
        ),
        tensors=(Share(**shares("wte.weight", 0.25, 0.1, 0.25, around(0.4))),),
        findings=(Finding(code="where-incomplete", severity="warning", message="off by much"),),
    )
    settings = ForgettingSettings(
        protocol="causal-cross-entropy/1", unit="line", context=64, stride=32, max_sequences=None, seed=0,
        num_resamples=100, device="cpu", dtype="float32",
    )  # fmt: skip
    return ForgettingReport(
        base="base", tuned="tuned", kind="causal", settings=settings, environment={}, where=where
    )


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (around(1.3, 0.1), "It forgets more for what it learns than"),
        (around(0.7, 0.1), "It forgets less for what it learns than"),
        (around(1.0, 0.1), "it forgets about as much as"),
        (None, "of the gain on the task."),
    ],
)
def test_the_sentence_claims_what_the_interval_allows(report, ratio, said):
    spans = (replace(report.where.spans[0], ratio=ratio), *report.where.spans[1:])
    sentence = where_sentence(replace(report.where, spans=spans))
    assert said.lower() in sentence.lower()
    assert "40% (38% to 42%) of the forgetting" in sentence
    assert ("for what it learns" in sentence.lower()) == (ratio is not None)


def test_without_intruders_the_sentence_names_the_part_that_forgot_most(report):
    plain = tuple(
        replace(each, vectors=tuple(replace(v, verdict="aligned") for v in each.vectors))
        for each in report.where.matrices[:2]
    )
    sentence = where_sentence(replace(report.where, matrices=plain))
    assert sentence.startswith(
        "The tuned model has no intruders. The largest share of forgetting, 50%, is in h.0.q"
    )


def test_the_terminal_shows_spans_and_findings(report):
    console = Console(width=100)
    with console.capture() as shown:
        for piece in where_summary(report.where):
            console.print(piece)
    text = shown.get()
    for part in (
        "rest of the matrices",
        "-10.0% (-12 to -8)",
        "warning[where-incomplete]",
        "measured +0.2000",
    ):
        assert part in text, part
    assert "\u202e" not in text


SCRIPT = """
const all = selector => [...document.querySelectorAll(selector)];
const read = cell => [cell.dataset.kind, cell.dataset.layer, cell.textContent];
const cells = () => all("#maps td[data-kind]").map(read);
const shares = cells();
all("#maps input").find(each => each.value === "ratio").click();
await new Promise(done => setTimeout(done, 50));
all('#maps td[data-layer="1"][data-kind="up"]')[0].click();
return {
  shares, ratios: cells(), bars: all("#spans rect").length, chosen: all("#matrix select")[0].selectedIndex,
  findings: all("#glance .warning").length, bold: all("#matrix tr.strong").length,
  parts: all("#parts tbody tr").length, injected: all("td b, th b").length,
};
"""


def test_the_page_shows_every_part(report, tmp_path):
    write_where_html(report, tmp_path / "where.html")
    seen = look((tmp_path / "where.html").read_text(encoding="utf-8"), SCRIPT, tmp_path)
    assert seen.answer == {
        "shares": [["q", "0", "50"], ["q", "1", "−10"], ["up", "1", "50"]],
        "ratios": [["q", "0", "2.00"], ["q", "1", "×"], ["up", "1", "2.00"]],
        "bars": 12,
        "chosen": 2,
        "findings": 1,
        "bold": 1,
        "injected": 0,
        "parts": 4,
    }
    assert seen.console == []


def test_the_pictures_are_written(report, tmp_path):
    names = write_where_plots(report, tmp_path / "plots")
    assert set(names) == {f"where-{name}.{kind}" for name in ("map", "spans") for kind in ("png", "svg")}
