"""What a terminal shows: within 80 columns, right numbers, and names that stay names."""

import io
import random
import re
from dataclasses import replace

import pytest
import report_cases as cases
from rich.console import Console

from intruscope.report.terminal import plan_table, summary
from intruscope.weights.matrices import CoverageEntry, Finding, Pairing

HOSTILE = "[bold red]evil[/]\x1b[2J\u202egpj.\x07\nfake line\ud800"


def shown(parts, width=80):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=False, color_system=None)
    for part in parts:
        console.print(part)
    return stream.getvalue()


def test_cells_count_intruders_of_candidates():
    report = cases.scan(7, layers=3)
    text = shown(summary(report))
    for kind in cases.KINDS:
        cells = [(m.layer, m.sides[0].num_intruders) for m in report.matrices if m.kind == kind]
        line = next(line for line in text.splitlines() if re.match(rf"\s+{kind}\s", line))
        total = sum(count for _, count in cells)
        assert line.split()[1:] == [f"{count}/10" for _, count in cells] + [f"{total}/30"]
    total = sum(m.sides[0].num_intruders for m in report.matrices)
    last = next(line for line in text.splitlines() if re.match(r"\s+all\s.*/210", line))
    assert last.split()[-1] == f"{total}/210"


@pytest.mark.parametrize("layers", [1, 12, 80])
def test_no_line_is_wider_than_80_columns(layers):
    report = cases.scan(1, layers=layers, side="both", null=True, extra=(cases.refused("x" * 400),))
    text = shown(summary(report))
    assert max(map(len, text.splitlines())) <= 80
    totals = [sum(m.sides[0].num_intruders for m in report.matrices if m.sides), 70 * layers]
    assert f"{totals[0]}/{totals[1]}" in text


def test_hostile_names_are_text():
    settings = cases.scan().settings
    matrix = cases.matrix(random.Random(1), HOSTILE, HOSTILE, 0, intruders=3, settings=settings)
    report = cases.scan(
        layers=1,
        extra=(matrix, replace(cases.refused(HOSTILE), kind=HOSTILE)),
        findings=(Finding(code=HOSTILE, severity="error", message=HOSTILE, matrix=HOSTILE),),
        coverage=(CoverageEntry(tensor=HOSTILE, origin="base", status="skipped", reason=HOSTILE),),
    )
    text = shown(summary(report))
    assert not set(text) & {"\x1b", "\u202e", "\x07", "\ud800"}
    assert "[bold red]evil[/]\\x1b[2J\\u202egpj.\\x07\\nfake line\\ud800" in text.replace("\n", "")
    assert not any(line.startswith("fake line") for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 80


def test_findings_come_gravest_first_and_once():
    findings = [
        Finding(code="note", severity="info", message="a note"),
        *(
            Finding(code="noise", severity="warning", message="mostly noise", matrix=f"m{i}")
            for i in range(40)
        ),
        Finding(code="bad", severity="error", message="not finite", matrix="m"),
    ]
    text = shown(summary(cases.scan(layers=1, findings=findings)), width=200)
    places = [text.index(part) for part in ("error [bad] m: not finite", "warning [noise]", "info [note]")]
    assert places == sorted(places)
    assert text.count("mostly noise") == 1
    assert "(and 39 more)" in text


def test_coverage_adds_up():
    text = shown(summary(cases.scan(layers=2)))
    assert "coverage: 14 matrices compared, in 14 of 16 tensors; 0 unchanged, 2 skipped" in text
    assert "2 skipped: a vector: no singular vectors to compare" in text


def test_the_two_factors_of_a_matrix_count_as_one_matrix():
    ledger = [
        CoverageEntry(tensor=name, origin=origin, status="compared", reason="", matrices=("q_proj",))
        for name, origin in (("q_proj", "base"), ("lora_A", "adapter"), ("lora_B", "adapter"))
    ]
    text = shown(summary(replace(cases.scan(layers=1), coverage=tuple(ledger))))
    assert "coverage: 1 matrix compared, in 3 of 3 tensors; 0 unchanged, 0 skipped" in text


def test_what_was_missed_is_counted_apart():
    missed = CoverageEntry(tensor="t", origin="base", status="skipped", reason="lost", gap=True)
    text = shown(summary(cases.scan(layers=2, coverage=(missed,))))
    assert "14 matrices compared, in 14 of 17 tensors; 0 unchanged, 3 skipped, 1 of these missed" in " ".join(
        text.split()
    )


def test_what_is_outside_the_scope_is_apart():
    settings = cases.scan().settings
    head = cases.matrix(
        random.Random(2), "lm_head", "head", None, intruders=6, settings=settings, scope="other"
    )
    text = shown(summary(cases.scan(rate=0, layers=1, extra=(head,))))
    assert "6/10 in embeddings" in text
    assert "0/70" in text
    assert "head" not in [line.split()[0] for line in text.splitlines() if line.strip()]


def test_an_empty_plan_and_an_empty_scan_are_shown():
    assert "nothing can be said" in shown(summary(cases.scan(layers=0)))
    pairing = Pairing(base=HOSTILE, tuned="t", pairs=(), coverage=(), findings=(), inputs=(), complete=True)
    text = shown(plan_table(pairing))
    assert "0 matrices to compare" in text
    assert "\x1b" not in text
