"""A gate in CI on a classifier over its language model: what the files explain does not end it with 5."""

import json

import pytest
import torch
from cli_support import CONFIG, assert_message, invoke, matrices, write_model

pytestmark = pytest.mark.usefixtures("inline")
CLASSIFIER = CONFIG.replace("ForCausalLM", "ForSequenceClassification")


def _models(folder, config, head="score.weight"):
    base = {"model.embed_tokens.weight": torch.zeros(9, 40), "lm_head.weight": torch.ones(9, 40)}
    tuned = {**matrices(2, change=1.0), "model.embed_tokens.weight": torch.zeros(9, 40)}
    before = write_model(folder / "base", {**matrices(2), **base})
    after = write_model(folder / "tuned", {**tuned, head: torch.ones(2, 40)})
    (after / "config.json").write_text(config)
    return before, after


def test_a_classifier_over_its_language_model_passes_and_fails_gates_as_any_model(tmp_path):
    models = _models(tmp_path, CLASSIFIER)
    output = tmp_path / "r.json"
    done = invoke("scan", *models, "--workers", 1, "--json", output)
    assert done.returncode == 0, done.stderr
    assert "new head, not compared: score.weight (2, 40)" in " ".join(done.stdout.split())
    assert invoke("scan", *models, "--workers", 1, "-q", "--fail-on", "warnings>0").returncode == 0
    assert invoke("scan", *models, "--workers", 1, "-q", "--fail-on", "intruders>=0").returncode == 1
    report = json.loads(output.read_text())
    assert report["complete"]
    told = {
        entry["tensor"]: entry["head"]
        for entry in report["coverage"]
        if entry["status"] == "skipped" and not entry["gap"]
    }
    assert told == {"score.weight": "new", "lm_head.weight": "dropped"}


def test_a_head_that_nothing_explains_ends_with_5_and_wins_over_a_gate(tmp_path):
    models = _models(tmp_path, CONFIG)
    output = tmp_path / "r.json"
    done = invoke("scan", *models, "--workers", 1, "-q", "--fail-on", "intruders>=0", "--json", output)
    assert done.returncode == 5
    assert "some weights could not be matched" in done.stderr
    gaps = {entry["tensor"] for entry in json.loads(output.read_text())["coverage"] if entry["gap"]}
    assert "score.weight" in gaps


def test_a_repair_of_a_classifier_ends_with_0(tmp_path):
    models = _models(tmp_path, CLASSIFIER)
    done = invoke("repair", *models, "-o", tmp_path / "whole", "-q", "--workers", 1)
    assert done.returncode == 0, done.stderr
    (tmp_path / "other").mkdir()
    done = invoke(
        "repair", *_models(tmp_path / "other", CONFIG), "-o", tmp_path / "part", "-q", "--workers", 1
    )
    assert_message(done, 5, "could not be matched", "intruscope scan")
