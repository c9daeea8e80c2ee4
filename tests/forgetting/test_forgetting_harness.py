"""Skills: what the harness says of each model alone, item by item, and what pairing makes of it."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from forgetting_models import TEXT
from forgetting_pairs import causal_pair, masked_pair
from harness_tasks import write_generation, write_task
from scipy import stats

import intruscope
from intruscope.errors import IntruscopeError, MalformedInput, UsageError
from intruscope.forgetting.gates import METRICS, checked, parse_forgetting_gates
from intruscope.forgetting.harness import Harness, ItemScores
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.records import FleetForgettingReport
from intruscope.forgetting.scores import score
from intruscope.forgetting.settings import SkillSettings
from intruscope.forgetting.skills import adjusted, skill_figures

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def harness():
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skills")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    causal_pair(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(folder):
    return [str(write_task(folder, "endings")), str(write_generation(folder, "sayings"))]


def by_harness_alone(model, tokenizer, tasks, **options):
    """What lm-eval says of one model, run the ordinary way: samples by task and filter."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=3, max_length=64)
    manager = TaskManager(include_defaults=False)
    return simple_evaluate(
        model=wrapped, tasks=tasks, task_manager=manager, bootstrap_iters=0, cache_requests=False, **options
    )


def test_identical_to_two_runs_of_the_harness_item_by_item(harness, folder, tasks):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = SkillSettings(skills=tuple(tasks), num_fewshot=2)
    pair = load_pair(folder / "base", folder / "full")
    ours = Harness(settings)
    seen = {}
    for state, inside in (("base", pair.as_base), ("full", pair.as_tuned)):
        with inside():
            found = ours.scores(pair.language_model())
        model = AutoModelForCausalLM.from_pretrained(folder / state)
        theirs = by_harness_alone(model, AutoTokenizer.from_pretrained(folder / "base"), tasks, num_fewshot=2)
        assert [each.key for each in found] == [
            ("endings", "acc", "none"), ("endings", "acc_norm", "none"), ("sayings", "exact_match", "none"),
        ]  # fmt: skip
        for each in found:
            samples = sorted(theirs["samples"][each.task], key=lambda sample: sample["doc_id"])
            assert list(each.values_N) == [float(sample[each.metric]) for sample in samples]
            assert each.items == tuple(sample["prompt_hash"] + sample["target_hash"] for sample in samples)
            assert each.num_fewshot == 2
            figure = theirs["results"][each.task][f"{each.metric},none"]
            assert each.values_N.mean() == pytest.approx(figure, abs=1e-12)
        seen[state] = np.concatenate([each.values_N for each in found])
    assert not np.array_equal(seen["base"], seen["full"])  # and so not one state twice


def test_the_answers_are_those_of_our_own_multiple_choice(harness, folder, tmp_path):
    path = write_task(tmp_path, "endings", metric_list=[{"metric": "acc"}])
    pair = load_pair(folder / "base", folder / "full")
    ours = intruscope.load_task(tmp_path / "endings.jsonl")
    skills = Harness(SkillSettings(skills=(str(path),)))
    for inside in (pair.as_base, pair.as_tuned):
        with inside():
            (found,) = skills.scores(pair.language_model())
            assert list(found.values_N == 1.0) == list(score(pair, ours).right_N)


def test_a_report_with_text_and_skills(harness, folder, tasks):
    events, state = [], torch.random.get_rng_state()
    report = intruscope.forget(
        folder / "base", folder / "full", text=folder / "text.txt", context=32, skills=tasks,
        on_progress=events.append,
    )  # fmt: skip
    assert torch.equal(torch.random.get_rng_state(), state)
    assert report.forgetting.estimate > 0
    skills = report.skills
    assert (skills.num_tests, skills.chat_template) == (3, False)
    assert [(each.num_items, each.version) for each in skills.figures] == [(20, "2.0")] * 3
    acc = skills.figures[0]
    base, tuned = Harness(SkillSettings(skills=tuple(tasks))), load_pair(folder / "base", folder / "full")
    with tuned.as_base():
        before = base.scores(tuned.language_model())[0].values_N
    with tuned.as_tuned():
        after = base.scores(tuned.language_model())[0].values_N
    assert acc.base.estimate == before.mean()
    assert acc.difference.estimate == pytest.approx((after - before).mean())
    assert (acc.num_lost, acc.num_won) == ((before > after).sum(), (after > before).sum())
    lost, won = acc.num_lost, acc.num_won
    assert acc.p == pytest.approx(stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0)
    assert intruscope.ForgettingReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    stages = {event.stage: event for event in events}
    assert stages["skills of the base, likelihoods"].unit == "requests"
    assert stages["skills of the tuned model, answers"].done == 20
    assert all(event.done == event.total for event in stages.values())


def test_swapping_the_models_swaps_what_was_lost_and_won(harness, folder, tasks):
    there, back = (
        intruscope.forget(folder / a, folder / b, skills=tasks[:1], tokenizer=folder / "base").skills.figures
        for a, b in (("base", "full"), ("full", "base"))
    )
    for one, other in zip(there, back, strict=True):
        assert (one.num_lost, one.num_won) == (other.num_won, other.num_lost)
        assert one.difference.estimate == -other.difference.estimate
        assert one.p == other.p
        assert one.sha256 == other.sha256
    same = intruscope.forget(folder / "base", folder / "base", skills=tasks[:1]).skills.figures
    assert all((each.num_lost, each.num_won, each.p) == (0, 0, 1.0) for each in same)


def test_several_fine_tunes_share_the_base_and_are_those_of_each_alone(harness, folder, tasks, monkeypatch):
    asked = []
    scores = Harness.scores
    monkeypatch.setattr(Harness, "scores", lambda self, *a, **k: asked.append(1) or scores(self, *a, **k))
    options = {"text": folder / "text.txt", "context": 32, "skills": tasks[:1]}
    fleet = intruscope.forget_fleet(folder / "base", [folder / "lora", folder / "full"], **options)
    assert len(asked) == 3  # the base once
    assert fleet.labels == ("lora", "full")
    for label, report in zip(fleet.labels, fleet.reports, strict=True):
        alone = intruscope.forget(folder / "base", folder / label, **options)
        assert report.tuned == alone.tuned
        assert report.forgetting.estimate == pytest.approx(alone.forgetting.estimate, abs=1e-6)
        assert report.skills.num_tests == 4
        for ours, theirs in zip(report.skills.figures, alone.skills.figures, strict=True):
            assert ours.difference == theirs.difference
            assert ours.p == theirs.p
    every = [each for report in fleet.reports for each in report.skills.figures]
    assert adjusted([every]) == [tuple(every)]  # already adjusted for all four together
    assert FleetForgettingReport.from_json(json.loads(json.dumps(fleet.to_json()))) == fleet


def test_prompts_get_the_chat_template_of_the_model(harness, folder, tasks):
    pair = load_pair(folder / "base", folder / "full")
    language = pair.language_model()
    language.tokenizer.chat_template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}"
    items = {}
    for chat in ("auto", "never"):
        skills = Harness(SkillSettings(skills=(tasks[0],), chat_template=chat))
        assert skills.uses_chat_template(language) == (chat == "auto")
        items[chat] = skills.scores(language)[0].items
    assert set(items["auto"]).isdisjoint(items["never"])


def test_items_are_limited_and_groups_are_pooled(harness, folder, tmp_path):
    from lm_eval.tasks import TaskManager

    first, second = write_task(tmp_path, "one"), write_task(tmp_path, "two")
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [one, two]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    with pytest.MonkeyPatch.context() as patch:  # the index of the harness's own tasks takes seconds
        make = TaskManager.__init__
        patch.setattr(
            TaskManager,
            "__init__",
            lambda self, **_: make(self, include_defaults=False, include_path=str(tmp_path)),
        )
        skills = Harness(SkillSettings(skills=("both",), max_items=7))
        with pytest.raises(UsageError, match="the task one is asked for twice"):
            Harness(SkillSettings(skills=("both", "one")))
    found = skills.scores(load_pair(folder / "base", folder / "full").language_model())
    assert [each.key[:2] for each in found] == [
        ("one", "acc"), ("one", "acc_norm"), ("two", "acc"), ("two", "acc_norm"), ("both", "acc"),
    ]  # fmt: skip
    assert list(found[4].values_N) == [*found[0].values_N, *found[2].values_N]
    assert len(found[4].items) == 14
    assert first.exists()
    assert second.exists()


class TestRefused:
    def test_no_harness(self, monkeypatch, folder):
        monkeypatch.setattr("intruscope.forgetting.harness.find_spec", lambda _: None)
        with pytest.raises(UsageError, match="lm-eval, which is not installed") as caught:
            intruscope.forget(folder / "base", folder / "full", skills=["hellaswag"])
        assert "intruscope[eval]" in caught.value.remedy

    def test_an_encoder(self, harness, tmp_path, tasks):
        masked_pair(tmp_path)
        with pytest.raises(UsageError, match="this is a masked one") as caught:
            intruscope.forget(tmp_path / "base", tmp_path / "classifier", skills=tasks[:1])
        assert "--task" in caught.value.remedy

    def test_a_task_that_does_not_exist(self, harness, monkeypatch):
        known = types.SimpleNamespace(task_index={}, all_tasks=["hellaswag", "gsm8k", "arc_easy"])
        monkeypatch.setattr(sys.modules["lm_eval.tasks"], "TaskManager", lambda **_: known)
        with pytest.raises(UsageError, match="has no task helaswag") as caught:
            Harness(SkillSettings(skills=("helaswag",)))
        assert "hellaswag" in caught.value.remedy
        with pytest.raises(UsageError, match=r"there is no file missing\.yaml"):
            Harness(SkillSettings(skills=("missing.yaml",)))

    def test_a_task_without_its_data(self, harness, tmp_path):
        path = write_task(tmp_path, "lost")
        (tmp_path / "lost.jsonl").unlink()
        with pytest.raises(MalformedInput, match="cannot load the task .*lost.yaml") as caught:
            Harness(SkillSettings(skills=(str(path),)))
        assert "data set" in caught.value.remedy

    def test_nothing_to_measure(self, folder):
        with pytest.raises(UsageError, match="nothing to measure forgetting on"):
            intruscope.forget(folder / "base", folder / "full")

    def test_different_items(self):
        before, after = scores([1.0, 0.0]), scores([1.0, 1.0], items=("a", "z"))
        with pytest.raises(MalformedInput, match="did not ask both models the same questions"):
            skill_figures([before], [after], num_resamples=100, seed=0)
        with pytest.raises(IntruscopeError, match="nothing to pair"):
            skill_figures([], [], num_resamples=100, seed=0)


def scores(values, **more):
    facts = {
        "task": "t", "metric": "m", "filter": "none", "higher_is_better": True, "num_fewshot": 0,
        "version": None, "items": tuple("abcdefghijklmnopqrstuvwxyz"[: len(values)]),
    }  # fmt: skip
    return ItemScores(values_N=np.array(values, dtype=float), **{**facts, **more})


def test_scores_that_are_no_right_or_wrong():
    before, after = [0.5, 0.2, 0.9, 0.4, 0.6], [0.4, 0.1, 0.5, 0.4, 0.7]
    (higher,) = skill_figures([scores(before)], [scores(after)], num_resamples=500, seed=0)
    assert higher.difference.estimate == pytest.approx(np.mean(after) - np.mean(before))
    assert (higher.num_lost, higher.num_won) == (3, 1)
    assert higher.loss.estimate == pytest.approx(-higher.difference.estimate)
    assert higher.loss.low == -higher.difference.high
    theirs = stats.permutation_test(
        (np.subtract(after, before),), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert higher.p == pytest.approx(theirs)
    lower = skill_figures(
        [scores(before, higher_is_better=False)], [scores(after, higher_is_better=False)],
        num_resamples=500, seed=0,
    )[0]  # fmt: skip
    assert (lower.num_lost, lower.num_won) == (1, 3)
    assert lower.loss == lower.difference == higher.difference


def figures(*changes):
    """Skills with these items lost and won, of 26 each."""
    before = [scores([1.0] * lost + [0.0] * won + [1.0] * (26 - lost - won)) for lost, won in changes]
    after = [scores([0.0] * lost + [1.0] * won + [1.0] * (26 - lost - won)) for lost, won in changes]
    return adjusted([skill_figures(before, after, num_resamples=100, seed=0)])[0]


def test_gates(harness, folder, tasks):
    from dataclasses import replace

    report = intruscope.forget(folder / "base", folder / "full", text=folder / "text.txt", skills=tasks[:1])
    worse = replace(report, skills=replace(report.skills, figures=figures((12, 0), (2, 1), (0, 9))))
    wanted = {
        "forgetting": report.forgetting.estimate,
        "forgetting_low": report.forgetting.low,
        "skill_loss": 12 / 26,
        "skills_lost": 1,  # the third got better, the second is within chance
        "warnings": 0,
    }
    assert list(wanted) == list(METRICS)
    for metric, value in wanted.items():
        gates = parse_forgetting_gates(f"{metric} >= {value!r}", has_text=True, has_skills=True)
        (outcome,) = checked(worse, gates).gates
        assert outcome.value == pytest.approx(value)
        assert outcome.tripped
        gates = parse_forgetting_gates(f"{metric} > {value + 0.01!r}", has_text=True, has_skills=True)
        assert not checked(worse, gates).gates[0].tripped
    for text, flag in (("forgetting>0", "--text"), ("skills_lost>0", "--skills")):
        with pytest.raises(UsageError, match=f"without {flag}"):
            parse_forgetting_gates(text, has_text=False, has_skills=False)
    with pytest.raises(UsageError, match="cannot read the gate"):
        parse_forgetting_gates("intruders>0", has_text=True, has_skills=True)
