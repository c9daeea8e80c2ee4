"""The harness sees each state as it is: its answers are those of our own multiple choice."""

import json

import pytest
from forgetting_pairs import causal_pair, masked_pair

import intruscope
from intruscope.errors import IntruscopeError
from intruscope.forgetting.harness import run_harness
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.scores import score

pytestmark = pytest.mark.filterwarnings("ignore")
ENDINGS = ["waited.", "said nothing.", "are alike", "was cold"]


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("intruscope.forgetting.harness.find_spec", lambda _: None)
    with pytest.raises(IntruscopeError, match="lm-eval is not installed") as caught:
        run_harness(None, ["hellaswag"])
    assert "intruscope[eval]" in caught.value.remedy


def test_a_masked_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("intruscope.forgetting.harness.find_spec", lambda _: True)
    masked_pair(tmp_path)
    with pytest.raises(IntruscopeError, match="cannot run a masked language model"):
        run_harness(load_pair(tmp_path / "base", tmp_path / "classifier"), ["hellaswag"])


def test_both_states_as_our_own_scores(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    causal_pair(tmp_path)
    prompts = ["She", "All happy families", "The naïve café owner", "It was a bright day and", "Call me"]
    rows = [
        {"prompt": prompt, "choices": [ENDINGS[(i + j) % 4] for j in range(2)], "answer": (i + k) % 2}
        for i, prompt in enumerate(prompts)
        for k in range(2)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "endings",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "t.jsonl")},
            "cache_dir": str(tmp_path / "c"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    pair = load_pair(tmp_path / "base", tmp_path / "full")
    found = run_harness(pair, [task], bootstrap_iters=0)
    ours = intruscope.load_task(tmp_path / "t.jsonl")
    seen = {}
    for state, inside in (("base", pair.as_base), ("tuned", pair.as_tuned)):
        with inside():
            right = score(pair, ours).right_N
        samples = sorted(found[state]["samples"]["endings"], key=lambda sample: sample["doc_id"])
        assert [bool(sample["acc"]) for sample in samples] == list(right)
        assert found[state]["results"]["endings"]["acc,none"] == pytest.approx(right.mean())
        seen[state] = [response[0][0] for sample in samples for response in sample["resps"]]
    assert seen["base"] != seen["tuned"]
