"""Tasks in every form that is read, their labels, and scores against a model asked by hand."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from forgetting_models import SMALL, word_tokenizer

from intruscope.adapters.live import LivePair, TaskModel
from intruscope.errors import IntruscopeError, UsageError
from intruscope.forgetting.scores import score
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask, TextTask, load_task

PAIRS = [("All happy families", "are alike", "entailment"), ("Call me.", "She waited.", "neutral")]


def classification_files(folder):
    """The same two examples in every form."""
    records = [{"text_a": a, "text_b": b, "label": label} for a, b, label in PAIRS]
    (folder / "t.json").write_text(json.dumps({str(i): r for i, r in enumerate(records)}))
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "t.parquet")
    (folder / "t.csv").write_text("text_a,text_b,label\n" + "\n".join(",".join(p) for p in PAIRS))
    (folder / "t.tsv").write_text("text_a\ttext_b\tlabel\n" + "\n".join("\t".join(p) for p in PAIRS))


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.parquet", "t.csv", "t.tsv"])
def test_classification_in_every_form(name, tmp_path):
    classification_files(tmp_path)
    task = load_task(tmp_path / name)
    assert isinstance(task, ClassificationTask)
    assert task.texts == tuple((a, b) for a, b, _ in PAIRS)
    assert task.labels == ("entailment", "neutral")
    assert task.sha256 == load_task(tmp_path / "t.json").sha256
    assert task.numbers(("contradiction", "ENTAILMENT", "neutral")) == (1, 2)


def test_sentences_of_a_tsv_quote_nothing(tmp_path):
    (tmp_path / "dev.tsv").write_text('sentence\tlabel\n"so he said\t1\nit \'s "fine" \t0\n')
    task = load_task(tmp_path / "dev.tsv")
    assert task.texts == (('"so he said', None), ('it \'s "fine" ', None))
    assert task.numbers(("LABEL_0", "LABEL_1")) == (1, 0)


def test_fields_by_name(tmp_path):
    row = {"q": "Call me.", "a": "She waited.", "class": True, "label": "no"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    task = load_task(tmp_path / "t.jsonl", text_fields=["q", "a"], label_field="class")
    assert (task.texts, task.labels) == ((("Call me.", "She waited."),), ("1",))


def test_labels_by_number_by_name_and_by_a_given_order(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": "x", "label": n}) for n in ("b", "A")))
    task = load_task(tmp_path / "t.jsonl")
    assert task.numbers(("a", "b")) == (1, 0)
    with pytest.raises(
        IntruscopeError, match=r"know the label 'b' \(of A, b\); its classes are LABEL_0"
    ) as caught:
        task.numbers(("LABEL_0", "LABEL_1"))
    assert caught.value.exit_code == 4
    assert "--labels" in caught.value.remedy
    told = load_task(tmp_path / "t.jsonl", labels=["b", "a"])
    assert told.numbers(("LABEL_0", "LABEL_1")) == (0, 1)
    with pytest.raises(IntruscopeError, match="--labels names 2 classes, but the model has 3"):
        told.numbers(("LABEL_0", "LABEL_1", "LABEL_2"))


def test_numbers_outside_the_models_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nx,0\ny,2\n")
    with pytest.raises(IntruscopeError, match="label '2'"):
        load_task(tmp_path / "t.csv").numbers(("LABEL_0", "LABEL_1"))


CHOICES = {
    "plain": {"prompt": "She ", "choices": ["waited.", "said nothing."], "answer": 1},
    "keyed": {
        "question": "She",
        "choices": {"text": ["waited.", "said nothing."], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "by-text": {"prompt": "She", "choices": ["waited.", "said nothing."], "answer": "said nothing."},
    "letter": {"prompt": "She", "choices": ["waited.", "said nothing."], "answer": "B"},
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_multiple_choice(name, tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps(CHOICES[name]))
    (choice,) = load_task(tmp_path / "t.jsonl").choices
    assert choice.prompts == ("She", "She")
    assert choice.endings == (" waited.", " said nothing.")
    assert choice.answer == 1


def test_winogrande_and_instructions(tmp_path):
    row = {"sentence": "Ian gave Dennis _ menudo.", "option1": "his", "option2": "her", "answer": "2"}
    (tmp_path / "w.jsonl").write_text(json.dumps(row))
    (choice,) = load_task(tmp_path / "w.jsonl").choices
    assert choice.prompts == ("Ian gave Dennis his", "Ian gave Dennis her")
    assert choice.endings == (" menudo.", " menudo.")
    assert choice.answer == 1
    row = {"instruction": "Is it?\n\nAnswer format: true/false", "input": "", "answer": "false"}
    (tmp_path / "i.json").write_text(json.dumps([row]))
    (choice,) = load_task(tmp_path / "i.json").choices
    assert choice.endings == (" the correct answer is true", " the correct answer is false")
    assert choice.answer == 1


@pytest.mark.parametrize(
    ("name", "data", "code", "says"),
    [
        ("t.json", "[]", 4, "no examples"),
        ("t.jsonl", '{"prompt": "a", "choices": ["x", "y"], "answer": 2}', 4, "answer 2 of 2"),
        ("t.jsonl", '{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}', 4, "no gap"),
        ("t.jsonl", '{"a": "x", "label": 1}', 2, "columns: a, label"),
        ("t.jsonl", '{"text": "x", "label": 1}\n{"text": null, "label": 1}', 4, "example 2 is without text"),
    ],
)
def test_refused(name, data, code, says, tmp_path):
    (tmp_path / name).write_text(data)
    with pytest.raises(IntruscopeError, match=says) as caught:
        load_task(tmp_path / name)
    assert caught.value.exit_code == code


def pair_of(language=None, task=None):
    none = UsageError("none, expected one", remedy="give one")
    return LivePair(language=language or none, task=task or none, live={}, base={}, places={})


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    config = transformers.BertConfig(
        **SMALL, vocab_size=len(tokenizer), max_position_embeddings=40, num_labels=3,
        id2label={0: "contradiction", 1: "entailment", 2: "neutral"},
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    return TaskModel(
        model=model, tokenizer=tokenizer, labels=("contradiction", "entailment", "neutral"), max_context=32
    )


@pytest.mark.parametrize("batch", [1, 40, 4096])
def test_classification_is_what_the_model_says_one_by_one(batch, classifier, tmp_path):
    generator = np.random.default_rng(0)
    words = ["happy", "families", "are", "alike", "she", "waited", "the", "clocks", "were", "striking"]
    names = ("contradiction", "entailment", "neutral")
    rows = [
        {
            "text_a": " ".join(generator.choice(words, generator.integers(1, 25))),
            "text_b": " ".join(generator.choice(words, generator.integers(1, 25))),
            "label": str(generator.choice(names)),
        }
        for _ in range(40)
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    seen = []
    task = load_task(tmp_path / "t.json")
    got = score(pair_of(task=classifier), task, batch_tokens=batch, on_progress=seen.append)
    truncated = 0
    for row, right, nats in zip(rows, got.right_N, got.nats_N, strict=True):
        pair = (row["text_a"], row["text_b"])
        batch_of_one = classifier.tokenizer(*pair, truncation=True, max_length=32, return_tensors="pt")
        truncated += len(classifier.tokenizer(*pair)["input_ids"]) > 32
        with torch.no_grad():
            logits = classifier.model(**batch_of_one).logits[0]
        wanted = names.index(row["label"])
        assert right == (int(logits.argmax()) == wanted)
        assert nats == pytest.approx(-float(torch.log_softmax(logits, 0)[wanted]), abs=1e-4)
    assert truncated > 0
    assert got.num_truncated == truncated
    assert got.metric == "accuracy"
    assert 0 < got.value < 1
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (40, 40, "examples")


def test_a_causal_classifier_without_a_padding_token(tmp_path):
    """It reads its answer off the last token, which padding must not become."""
    from forgetting_models import byte_tokenizer

    torch.manual_seed(0)
    tokenizer = byte_tokenizer(begins=False)
    assert tokenizer.pad_token_id is None
    config = transformers.GPT2Config(
        n_embd=24, n_layer=2, n_head=4, vocab_size=len(tokenizer), num_labels=2, pad_token_id=1
    )
    model = transformers.GPT2ForSequenceClassification(config).eval()
    texts = ["she waited", "call me", "all happy families are alike", "no"]
    (tmp_path / "t.json").write_text(json.dumps([{"text": text, "label": 1} for text in texts]))
    task_model = TaskModel(model=model, tokenizer=tokenizer, labels=("a", "b"), max_context=None)
    got = score(pair_of(task=task_model), load_task(tmp_path / "t.json"))
    for text, nats in zip(texts, got.nats_N, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        assert nats == pytest.approx(-float(torch.log_softmax(logits, 0)[1]), abs=1e-5)


def test_texts_cut_to_a_given_length(classifier, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"text": "she waited " * 5, "label": 0}] * 2))
    got = score(pair_of(task=classifier), load_task(tmp_path / "t.json"), max_tokens=6)
    batch = classifier.tokenizer("she waited " * 5, truncation=True, max_length=6, return_tensors="pt")
    with torch.no_grad():
        logits = classifier.model(**batch).logits[0]
    assert got.nats_N == pytest.approx([-float(torch.log_softmax(logits, 0)[0])] * 2, abs=1e-5)
    assert got.num_truncated == 2


def test_a_classifier_that_gives_nan_is_refused(classifier, tmp_path):
    import copy
    from dataclasses import replace

    broken = copy.deepcopy(classifier.model)
    broken.classifier.bias.data[1] = float("nan")
    (tmp_path / "t.csv").write_text("text,label\nshe,0\n")
    with pytest.raises(IntruscopeError, match="the head returned NaN or infinity") as caught:
        score(pair_of(task=replace(classifier, model=broken)), load_task(tmp_path / "t.csv"))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_choices_by_the_likelihood_of_their_endings(name, models, tmp_path):
    language = models(name)
    rows = [
        {"prompt": "She", "choices": ["waited.", "said nothing at all."], "answer": 0},
        {"prompt": "All happy families", "choices": ["are alike", "waited", "were striking"], "answer": 2},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    task = load_task(tmp_path / "t.json")
    assert isinstance(task, ChoiceTask)
    got = score(pair_of(language), task, batch_tokens=33)
    model, tokenizer = language.model.double(), language.tokenizer
    for row, right, nats in zip(rows, got.right_N, got.nats_N, strict=True):
        sums = []
        for choice in row["choices"]:
            whole = tokenizer(f"{row['prompt']} {choice}")["input_ids"]
            shared = len(tokenizer(row["prompt"])["input_ids"]) - (name == "bert")
            total = 0.0
            for i in range(shared, len(whole) - (name == "bert")):
                masked = list(whole)
                if name == "bert":
                    masked[i] = tokenizer.mask_token_id
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([masked])).logits[0, i if name == "bert" else i - 1]
                total += float(torch.log_softmax(logits, 0)[whole[i]])
            sums.append(total)
        assert right == (int(np.argmax(sums)) == row["answer"])
        assert nats == pytest.approx(np.logaddexp.reduce(sums) - sums[row["answer"]], abs=1e-4)


def test_held_out_text_is_a_task(models, tmp_path):
    from forgetting_models import TEXT

    (tmp_path / "held.txt").write_text(TEXT)
    task = load_task(tmp_path / "held.txt")
    assert isinstance(task, TextTask)
    got = score(pair_of(models("gpt2")), task)
    assert got.metric == "nats/token"
    assert got.right_N is None
    assert got.value == pytest.approx(got.nats_N.sum() / got.units_N.sum())


@pytest.mark.parametrize("batch", [1, 50, 4096])
def test_choices_by_a_head_are_what_the_model_says_one_by_one(batch, tmp_path):
    """Also where examples differ in their number of choices, and inputs in their length."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    config = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=24)
    model = transformers.BertForMultipleChoice(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    generator = np.random.default_rng(0)
    words = ["happy", "families", "are", "alike", "she", "waited", "the", "clocks", "were", "striking"]

    def some(most):
        return " ".join(generator.choice(words, generator.integers(1, most)))

    rows = [
        {"prompt": some(25), "choices": [some(8) for _ in range(2 + i % 3)], "answer": i % 2}
        for i in range(30)
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    task_model = TaskModel(model=model, tokenizer=tokenizer, labels=(), max_context=24)
    none = UsageError("none, expected one", remedy="give one")
    pair = LivePair(language=none, task=none, choices=task_model, live={}, base={}, places={})
    got = score(pair, load_task(tmp_path / "t.json"), batch_tokens=batch)
    truncated = 0
    for row, right, nats in zip(rows, got.right_N, got.nats_N, strict=True):
        own = []
        for choice in row["choices"]:
            text = (row["prompt"], " " + choice)
            one = tokenizer(*text, truncation=True, max_length=24, return_tensors="pt")
            truncated += len(tokenizer(*text)["input_ids"]) > 24
            with torch.no_grad():
                own.append(float(model(**{key: value[None] for key, value in one.items()}).logits))
        assert right == (int(np.argmax(own)) == row["answer"])
        assert nats == pytest.approx(np.logaddexp.reduce(own) - own[row["answer"]], abs=1e-4)
    assert truncated == got.num_truncated > 0
    assert 0 < got.value < 1
