"""The page on controls matches the code, and its table is the published one."""

import json
import re
import sys
from pathlib import Path

import pytest

from intruscope.forgetting.intervals import Interval
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.sweep.records import SweepCell, SweepCellReport, SweepSettings
from intruscope.sweep.words import recommendation_sentence

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "controls.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results" / "interventions.json"


def three(estimate, low, high, scale=0.01):
    return Interval(estimate=scale * estimate, low=scale * low, high=scale * high)


def cell(control, share, points):
    nothing = three(0, 0, 0)
    return SweepCellReport(
        cell=SweepCell(control=control, which="top", strength=0.7, num_matrices=3, change_norm=1.0),
        data="evaluation half",
        forgetting=nothing,
        forgetting_change=share,
        forgetting_share=share,
        task=nothing,
        task_change=points,
        task_loss_change=nothing,
        forgetting_difference=nothing,
        task_difference=nothing,
    )


def test_the_quoted_sentence_is_what_the_sweep_would_say():
    quoted = " ".join(line.removeprefix("> ") for line in PAGE.splitlines() if line.startswith("> "))
    assert quoted == recommendation_sentence(
        which="top",
        outcome="recommended",
        report=cell("intruders", three(-23, -31, -15), three(-0.2, -0.9, 0.6)),
        matched=[cell("matched_change", three(-22, -30, -14), three(-0.1, -0.9, 0.7))],
        intruders="not-special",
        shrink=None,
        metric="accuracy",
        max_task_cost=0.01,
        forgetting=three(10, 5, 15),
    )


def test_every_control_has_a_line():
    table = PAGE.split("## What the edit is compared with")[1].split("\n\n")[1]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert named == ["intruders", "matched_change", "matched_result", "uniform", "random", "neighbour_above",
                     "neighbour_below", "tail", "interpolation"]  # fmt: skip
    assert set(named) == set(INTERVENTIONS)


def test_the_default_cost_is_the_codes():
    assert f"`--max-cost` ({SweepSettings().max_task_cost:g}:" in PAGE


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks import interventions_table
    finally:
        sys.path.remove(str(ROOT))
    return interventions_table


def test_the_table_is_the_published_one(benchmark):
    record = json.loads(RESULTS.read_text())
    assert record["columns"] == list(benchmark.COLUMNS)
    shown = PAGE.split("<!-- table -->\n")[1].split("\n<!-- end -->")[0]
    assert shown == benchmark.table(record["groups"], record["rows"])
