"""Facts and prompts from files: every form, what is put right with a word, and what is refused."""

import json

import pytest
from knowledge_models import write_facts

from intruscope.errors import MalformedInput, UsageError
from intruscope.knowledge.facts import Fact, read_facts
from intruscope.knowledge.matching import matches
from intruscope.knowledge.prompts import Asker, Prompt, few_shot_prompts, read_prompts

OTHER = {"question": "Other?", "answer": "x1"}


def only(path, **options):
    return read_facts(path, **options).facts[0]


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"question": "Q?", "answer": "Paris"}, ("Paris",)),
        ({"question": "Q?", "answer": 7}, ("7",)),
        ({"question": "Q?", "answer": "Paris", "aliases": ["the City of Light", "Paris"]},
         ("Paris", "the City of Light")),
        ({"question": "Q?", "answer": "Paris", "aliases": "Lutetia|Paname"}, ("Paris", "Lutetia", "Paname")),
        ({"question": "Q?", "answer": ["Paris", "Paname"]}, ("Paris", "Paname")),
        ({"question": "Q?", "possible_answers": '["Paris", "Paname"]'}, ("Paris", "Paname")),
        ({"question": "Q?", "answer": {"value": "Paris", "aliases": ["Paname"]}}, ("Paris", "Paname")),
    ],
)  # fmt: skip
def test_forms_of_answers(row, answers, tmp_path):
    second = {**OTHER, next(name for name in row if "answer" in name): "x1"}
    assert only(write_facts(tmp_path / "f.jsonl", [row, second])) == Fact(question="Q?", answers=answers)


def test_csv_with_named_columns_and_marks(tmp_path):
    (tmp_path / "f.csv").write_text("ask,say,also,trained\nQ?,Paris,Paname|Lutetia,1\nR?,Rome,,0\n")
    found = read_facts(tmp_path / "f.csv", fields=("ask", "say", "also"))
    assert found.facts == (
        Fact(question="Q?", answers=("Paris", "Paname", "Lutetia"), trained=True),
        Fact(question="R?", answers=("Rome",), trained=False),
    )
    assert found.findings == ()


def test_trained_facts_of_a_second_file_are_marked_and_added(tmp_path):
    first = write_facts(tmp_path / "f.jsonl", [{"question": "Q?", "answer": "Paris"}, OTHER])
    second = write_facts(
        tmp_path / "t.jsonl", [{"question": "other", "answer": "x2"}, {"question": "N?", "answer": "n1"}]
    )
    found = read_facts(first, trained=second)
    assert [(f.question, f.answers, f.trained) for f in found.facts] == [
        ("Q?", ("Paris",), False), ("Other?", ("x1", "x2"), True), ("N?", ("n1",), True),
    ]  # fmt: skip
    assert found.findings == ()
    assert found.sha256 != read_facts(first).sha256


def test_duplicates_and_empty_aliases_are_put_right_and_reported(tmp_path):
    rows = [
        {"question": "Q?", "answer": "Paris", "aliases": ["", "?"]},
        {"question": " q ", "answer": "Lutetia"},
        OTHER,
    ]
    found = read_facts(write_facts(tmp_path / "f.jsonl", rows))
    assert [fact.answers for fact in found.facts] == [("Paris", "Lutetia"), ("x1",)]
    assert [finding.code for finding in found.findings] == ["empty-alias", "duplicate-facts"]
    assert "1 of 3 facts repeat" in found.findings[1].message


def test_at_most_so_many_keep_the_share_of_trained_ones(tmp_path):
    rows = [{"question": f"Q{i}", "answer": f"a{i}", "trained": i % 4 == 0} for i in range(80)]
    found = read_facts(write_facts(tmp_path / "f.jsonl", rows), max_facts=20).facts
    assert (len(found), sum(fact.trained for fact in found)) == (20, 5)


@pytest.mark.parametrize(
    ("rows", "kind", "says"),
    [
        ([{"question": "Q?", "answer": ""}, OTHER], MalformedInput, "fact 1 ('Q?') has no answer"),
        ([OTHER, {"question": "Q?", "answer": None}], MalformedInput, "fact 2 ('Q?') has no answer"),
        ([{"question": "Q?", "answer": "?", "aliases": ["Paris"]}, OTHER], MalformedInput, "has no answer"),
        ([{"question": "", "answer": "a1"}, OTHER], MalformedInput, "fact 1 has no question"),
        ([{"question": "Q?", "answer": {"value": [1]}}, OTHER], MalformedInput, "which is not text"),
        ([{"question": "Q?", "answer": "a1", "trained": "maybe"}, OTHER], MalformedInput, "'trained' of"),
        ([{"question": "Q?", "answer": "\ud800"}, OTHER], MalformedInput, "surrogate"),
        ([OTHER], MalformedInput, "a single fact"),
        ([OTHER, OTHER], MalformedInput, "a single fact"),
        ([{"a": 1}], UsageError, "cannot tell which columns"),
        ([], MalformedInput, "holds no facts"),
    ],
)  # fmt: skip
def test_facts_that_will_not_do(rows, kind, says, tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(kind) as caught:
        read_facts(path)
    assert says in str(caught.value)


def test_a_dataset_of_the_hub(monkeypatch):
    rows = [{"question": "Q?", "answer": {"value": "Paris", "aliases": ["Paname"]}}, OTHER]
    monkeypatch.setattr(
        "intruscope.knowledge.facts.read_hub_table", {"hf:org/facts:validation": rows}.__getitem__
    )
    assert only("hf:org/facts:validation").answers == ("Paris", "Paname")


def test_files_that_are_no_facts(tmp_path):
    (tmp_path / "f.txt").write_text("Paris")
    for name, says in ((tmp_path / "f.txt", "tables"), (tmp_path / "nowhere.csv", "no such file")):
        with pytest.raises(UsageError, match=says):
            read_facts(name)


FACTS = [Fact(question=f"Q{i}", answers=(f"a{i % 5}",), trained=i >= 20) for i in range(30)]


def test_examples_never_give_the_answer_away():
    asker = Asker(FACTS, shots=4, seed=0)
    for draw in range(3):
        for place, asked in enumerate(FACTS):
            shown = asker.examples(place, Prompt(template="", draw=draw))
            assert len(shown) == len(set(shown)) == 4
            assert not any(matches(each.answers[0], asked.answers) for each in shown)
    one, two = (asker.examples(0, Prompt(template="", draw=draw)) for draw in (0, 1))
    assert one != two
    assert one == Asker(FACTS, shots=4, seed=0).examples(0, Prompt(template="", draw=0))
    assert one != Asker(FACTS, shots=4, seed=1).examples(0, Prompt(template="", draw=0))


def test_plain_text_and_chat():
    facts = [Fact(question="Who {x}?", answers=("Ann",)), Fact(question="Where?", answers=("Rome",))]
    prompt = few_shot_prompts(1).measured[0]
    plain = Asker(facts, shots=1, seed=0).text(0, prompt)
    assert plain == "Question: Where?\nAnswer: Rome\n\nQuestion: Who {x}?\nAnswer:"
    own = Asker(facts, shots=1, seed=0).text(0, Prompt(template="Briefly.\n{examples}{question}\n", draw=0))
    assert own == "Briefly.\nWhere?\nRome\n\nWho {x}?\n"

    class Chat:
        def apply_chat_template(self, messages, **options):
            assert options == {
                "tokenize": False, "add_generation_prompt": True, "enable_thinking": False
            }  # fmt: skip
            return [(each["role"], each["content"]) for each in messages]

    asker = Asker(facts, shots=1, seed=0, tokenizer=Chat())
    assert asker.text(0, prompt) == [("user", "Where?"), ("assistant", "Rome"), ("user", "Who {x}?")]
    own = Prompt(template="{examples}Briefly: {question}", draw=0)
    assert [text for _, text in asker.text(0, own)] == ["Briefly: Where?", "Rome", "Briefly: Who {x}?"]


def test_templates_make_two_sets_of_equal_size(tmp_path):
    (tmp_path / "p.txt").write_text(
        "A {question}\nB {question}\\nsay:\n\nC {question}\nD {question}\nE {question}\n"
    )
    sets = read_prompts(tmp_path / "p.txt")
    assert [p.template[0] for p in sets.measured] == ["A", "C"]
    assert [p.template for p in sets.other] == ["B {question}\nsay:", "D {question}"]
    (tmp_path / "p.csv").write_text('prompt\n"{examples}A {question}"\n"{examples}B {question}"\n')
    sets = read_prompts(tmp_path / "p.csv")
    assert [p.template[10] for p in sets.measured] == [p.template[10] for p in sets.other] == ["A", "B"]
    draws = [prompt.draw for part in (sets.measured, sets.other) for prompt in part]
    assert len(set(draws)) == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A {question}\nB\n", "does not hold {question}"),
        ("A {question} {question}\n", "exactly once"),
        ("{question} {examples}\n", "after any {examples}"),
        ("A {question}\n", "at least 2"),
        ("", "at least 2"),
        ("A {question}\n{examples}B {question}\n", "some do not"),
    ],
)
def test_templates_that_will_not_do(text, says, tmp_path):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(MalformedInput) as caught:
        read_prompts(tmp_path / "p.txt")
    assert says in str(caught.value)
