"""Guidance as one more fix of a sweep: measured by both models, chosen by the same rule."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sweep_cases import NUM_EXAMPLES, SETTINGS, report_of, world

from intruscope.engine.settings import RunOptions
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.repair.survey import survey
from intruscope.report.sweep_page import sweep_data
from intruscope.report.sweep_tables import sweep_summary
from intruscope.sweep.live import LiveBench
from intruscope.sweep.records import SweepCell, SweepReport, SweepSettings
from intruscope.sweep.run import run_grid
from intruscope.sweep.words import best_sentence


def test_the_grid_measures_guidance_at_every_strength(files):
    found = survey(str(files / "base"), str(files / "adapter"), options=RunOptions(workers=0))
    pair = load_pair(files / "base", files / "adapter", device="cpu")
    sequences = cut(read_texts([files / "text.txt"]), pair.language_model())
    bench = LiveBench(pair, sequences, protocol="fast", task=load_task(files / "task.tsv"))
    settings = SweepSettings(strengths=(0.0, 0.5, 1.0), controls=("intruders", "uniform", "guidance"))
    measured = run_grid(found, bench, settings, journal=None)
    by_gamma = {
        cell.strength: measured.by_key[cell.key] for cell in measured.cells if cell.control == "guidance"
    }
    assert list(by_gamma) == [0.0, 0.5, 1.0]
    assert by_gamma[0.0].text_nats == measured.base_text.text_nats
    assert by_gamma[1.0] == measured.tuned
    assert by_gamma[0.5] == bench.guided(0.5)
    half = measured.by_key["uniform/0.5"]  # not the adapter scaled by gamma
    assert not np.allclose(by_gamma[0.5].text_nats, half.text_nats, rtol=1e-3)


def with_guidance(removed, cost):
    """A simulated sweep in which guidance with these gammas removes and costs so much."""
    measured = world(lambda *_: 0.1, lambda *_: 0.0)
    text = np.array(measured.tuned.text_nats)
    harm = text - np.array(measured.base_text.text_nats)
    cells, by_key = list(measured.cells), dict(measured.by_key)
    for gamma, share in removed.items():
        cell = SweepCell(control="guidance", which=None, strength=gamma, num_matrices=0, change_norm=0.0)
        cells.append(cell)
        scores = np.array(measured.tuned.task_scores)
        scores[: round(cost[gamma] * NUM_EXAMPLES)] = 0.0
        by_key[cell.key] = replace(
            measured.tuned, text_nats=tuple(text - share * harm), task_scores=tuple(scores)
        )
    return replace(measured, cells=tuple(cells), by_key=by_key)


def test_the_same_rule_chooses_gamma():
    measured = with_guidance({0.3: 0.9, 0.7: 0.4, 0.9: 0.1}, {0.3: 0.3, 0.7: 0.0, 0.9: 0.0})
    report = report_of(measured, replace(SETTINGS, controls=(*SETTINGS.controls, "guidance")))
    choice = next(each for each in report.choices if each.control == "guidance")
    assert choice.strength == 0.7  # 0.3 costs too much
    assert choice.report.forgetting_share.estimate == pytest.approx(-0.4, abs=1e-6)
    assert choice.report.forgetting_difference.high < 0  # against the intruder edit at the same strength
    assert SweepReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    series = {each["control"]: each for each in sweep_data(report)["series"]}
    assert [cell["strength"] for cell in series["guidance"]["cells"]] == [0.3, 0.7, 0.9]
    assert sweep_summary(report)
    said = best_sentence(choice, None, None, "accuracy", 0.01)
    assert "is guidance by base and tuned model (gamma 0.7)" in said
    assert said.endswith("and needs both models for every token.")
    nothing = with_guidance({0.3: 0.9}, {0.3: 0.3})
    report = report_of(nothing, replace(SETTINGS, controls=(*SETTINGS.controls, "guidance")))
    assert report.choices[-1].strength is None
