"""Whole measurements of planted models: what was planted is found, laws hold, interrupted runs resume."""

import json
import sys
from pathlib import Path

import pytest
from knowledge_models import NUM_EACH, VALUES, planted, word_tokenizer, write_facts

import intruscope
from intruscope.engine.settings import RunOptions
from intruscope.knowledge import answers
from intruscope.knowledge.records import KnowledgeReport
from intruscope.knowledge.settings import KnowledgeSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from cli_support import assert_message, invoke

from pretend_device import pretend_device

pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = KnowledgeSettings(num_prompts=4, shots=2, samples=2, max_answer_tokens=4)
FLAGS = ["--num-prompts", "4", "--shots", "2", "--samples", "2", "--max-answer-tokens", "4"]


def measure(folder, base="base", tuned="tuned", **options):
    settings = options.pop("settings", SETTINGS)
    return intruscope.knowledge(
        folder / base, folder / tuned, facts=folder / "facts.jsonl", settings=settings, **options
    )


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTRUSCOPE_CACHE", str(tmp_path_factory.mktemp("own")))
        return measure(folder)


def of(report, kind):
    return [fact for fact in report.items if fact.question.startswith(f"Where is {kind}")]


def test_planted_exposures_are_recovered_and_those_never_seen_are_at_chance(report):
    known, rare, new = (of(report, kind) for kind in ("known", "rare", "new"))
    assert all(fact.base == "HighlyKnown" for fact in known)
    rights = [sum(fact.base_right for fact in facts) / NUM_EACH for facts in (known, rare, new)]
    assert rights[0] == 1.0 > rights[1] > rights[2]
    # Each value is the answer to as many facts, so any distribution of guesses is right in one of eight.
    chance = 1 / len(VALUES)
    assert abs(rights[2] - chance) < 3 * (chance * (1 - chance) / NUM_EACH) ** 0.5


def test_planted_gains_and_losses_are_found(report):
    known, new = of(report, "known"), of(report, "new")
    assert [fact.shift < 0 for fact in known] == [True] * 12 + [False] * 12
    assert {fact.question for fact in known[:12]} <= {fact.question for fact in report.lost}
    assert all(fact.tuned == "HighlyKnown" and fact.trained for fact in new[:12])
    assert report.reliability.estimate == 1.0
    assert report.base_reliability.estimate < 0.4
    assert report.trained.facts == 12
    assert report.trained.positive_shift.estimate > 0.6
    assert report.judged is report.untrained
    assert report.untrained.negative_beyond_null.low > 0
    assert report.tuned_answers.trained_answer_fraction > report.base_answers.trained_answer_fraction


def test_marginals_and_round_trip(report, tmp_path):
    for found in (report.overall, report.trained, report.untrained):
        assert [sum(row) for row in found.transitions] == list(found.base.values())
        assert [sum(row) for row in found.null_transitions] == list(found.base.values())
        assert [sum(column) for column in zip(*found.transitions, strict=True)] == list(found.tuned.values())
        assert sum(found.base.values()) == found.facts
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["schema"] == "intruscope.knowledge/1"
    assert data["facts"] == 3 * NUM_EACH == len(data["items"])
    assert data["base"] == report.overall.base
    assert {"estimate", "low", "high"} <= data["null_shift"].keys()
    assert KnowledgeReport.from_json(data) == report
    report.save(tmp_path / "k.json")
    assert KnowledgeReport.load(tmp_path / "k.json") == report
    table = report.to_arrow()
    assert table.num_rows == 3 * NUM_EACH
    assert table.column("shift").to_pylist() == [fact.shift for fact in report.items]
    assert "lost" in report._repr_html_()


def test_a_model_against_itself_has_no_shift_and_swapped_models_swap_the_shifts(folder, report):
    same = measure(folder, tuned="base").overall
    assert same.positive_shift.estimate == same.negative_shift.estimate == 0.0
    assert all(same.transitions[i][j] == 0 for i in range(4) for j in range(4) if i != j)
    swapped = measure(folder, base="tuned", tuned="base").overall
    assert swapped.transitions == tuple(zip(*report.overall.transitions, strict=True))
    assert swapped.positive_shift == report.overall.negative_shift
    assert swapped.negative_shift == report.overall.positive_shift


class Interrupted(BaseException):
    pass


def test_interrupted_and_resumed_is_whole_and_the_base_is_asked_once(folder, report, tmp_path, monkeypatch):
    asked = []
    greedy = answers.Answerer.greedy

    def counting(self, prompts):
        asked.append(len(prompts))
        return greedy(self, prompts)

    monkeypatch.setattr(answers.Answerer, "greedy", counting)
    events = []

    def interrupting(event):
        events.append(event)
        if event.stage == "tuned" and event.done == 32:
            raise Interrupted

    options = RunOptions(work_dir=tmp_path / "work")
    with pytest.raises(Interrupted):
        measure(folder, options=options, on_progress=interrupting)
    assert len(asked) == 7  # three parts of 32, 32 and 8 facts for each set of prompts of the base, and one
    asked.clear()
    events.clear()
    assert measure(folder, options=options, on_progress=events.append) == report
    assert asked == [32 * 4, 8 * 4]
    last = {event.stage: (event.done, event.total) for event in events}
    assert last == dict.fromkeys(("base", "base, other prompts", "tuned"), (72, 72))
    # In the user's cache the answers of the base serve every fine-tune.
    measure(folder)
    asked.clear()
    measure(folder, tuned="lora")
    assert sum(asked) == 72 * 4
    with pytest.raises(intruscope.IntruscopeError, match="differs in"):
        measure(folder, tuned="lora", options=options)


def test_models_in_memory_are_left_as_they_are(folder, report):
    base, tuned = planted()
    before = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    settings = KnowledgeSettings(**{**vars(SETTINGS), "tokenizer": word_tokenizer()})
    found = intruscope.knowledge(base, tuned, facts=folder / "facts.jsonl", settings=settings)
    assert found.items == report.items
    assert all((tensor == before[name]).all() for name, tensor in tuned.state_dict().items())


def test_a_chat_template_is_used_where_there_is_one(folder, tmp_path):
    tokenizer = word_tokenizer().__class__.from_pretrained(folder / "base")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'Question: ' if m.role == 'user' else 'Answer: ' }}{{ m.content }}"
        "{{ '\\n' if m.role == 'user' else '\\n\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}Answer:{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "chat")
    options = {**vars(SETTINGS), "samples": 0, "num_prompts": 2}
    chat = measure(folder, settings=KnowledgeSettings(**{**options, "tokenizer": str(tmp_path / "chat")}))
    plain = measure(folder, settings=KnowledgeSettings(**options))
    # The template writes the default prompt, so everything is the same.
    assert (chat.is_chat, plain.is_chat) == (True, False)
    assert chat.example == plain.example
    assert chat.items == plain.items
    assert not any(fact.base == "WeaklyKnown" for fact in plain.items)


def test_answers_on_a_gpu_are_those_of_the_cpu(folder):
    """Pretended: there is no operation on tensors of two devices."""
    few = {**vars(SETTINGS), "max_facts": 6, "num_prompts": 1}
    few.pop("device")
    expected = measure(folder, settings=KnowledgeSettings(**few, device="cpu"))
    with pretend_device("cuda") as there:
        got = measure(folder, settings=KnowledgeSettings(**few, device="cuda"))
    assert there.num_operations > 100
    assert got.environment["device"] == "cuda:0"
    assert got.items == expected.items


def test_the_command_writes_everything(folder, report, tmp_path):
    outputs = {kind: tmp_path / f"k.{kind}" for kind in ("json", "html", "csv", "parquet")}
    flags = [part for kind, path in outputs.items() for part in (f"--{kind}", path)]
    done = invoke(
        "knowledge", folder / "base", folder / "tuned", "--facts", folder / "facts.jsonl", *FLAGS, *flags
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert KnowledgeReport.load(outputs["json"]) == report
    assert outputs["csv"].read_text().count("\n") == 1 + 3 * NUM_EACH
    shown = " ".join(done.stdout.split())
    for part in ("facts that it was not trained on, the fine-tune lost", "null shift", "HighlyKnown"):
        assert part in shown


class TestRefused:
    def refused(self, code, *parts, folder, options=(), facts="facts.jsonl"):
        done = invoke("knowledge", folder / "base", folder / "tuned", "--facts", folder / facts, *options)
        assert_message(done, code, *parts)
        assert done.stdout == ""

    def test_a_context_too_small_for_prompt_and_answer(self, folder):
        self.refused(4, "more than the 128", "lower --shots", folder=folder, options=["--shots", "40"])
        self.refused(4, "more than the 128", folder=folder, options=["--max-answer-tokens", "120"])

    def test_an_answer_longer_than_the_context(self, folder, tmp_path):
        rows = [{"question": "Where is a", "answer": "city1 " * 130}, {"question": "b", "answer": "city1"}]
        write_facts(tmp_path / "f.jsonl", rows)
        self.refused(4, "has 130 tokens", folder=folder, facts=tmp_path / "f.jsonl")

    def test_prompts_that_are_all_the_same(self, folder):
        self.refused(2, "all prompts are the same", "--prompts", folder=folder, options=["--shots", "0"])

    def test_no_chat_template(self, folder):
        self.refused(2, "no chat template", folder=folder, options=["--chat", "always"])

    def test_a_table_without_these_columns(self, folder):
        options = ["--fact-fields", "question,nothing"]
        self.refused(2, "--fact-fields must name", folder=folder, options=options)

    def test_an_output_over_the_facts(self, folder):
        self.refused(7, "facts.jsonl", folder=folder, options=["--json", folder / "facts.jsonl"])

    def test_an_encoder(self, folder, tmp_path):
        sys.path.insert(0, str(Path(__file__).parents[1] / "forgetting"))
        from forgetting_models import Made

        language = Made()("bert")
        language.model.save_pretrained(tmp_path / "bert")
        language.tokenizer.save_pretrained(tmp_path / "bert")
        done = invoke("knowledge", tmp_path / "bert", tmp_path / "bert", "--facts", folder / "facts.jsonl")
        assert_message(done, 2, "masked language model, which cannot write answers", "intruscope forget")
