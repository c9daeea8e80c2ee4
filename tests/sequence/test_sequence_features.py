"""What is kept of a frozen body is what the model's own head sees: given to the head, it gives the logits."""

import pytest
import torch
import transformers
from sequence_models import examples, write_base

from intruscope.forgetting.tasks import ChoiceExample, ChoiceTask, classification_task
from intruscope.sequence.features import features
from intruscope.train.encoding import encode
from intruscope.train.loading import Loaded, load_for
from intruscope.weights.source import open_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
KINDS = {
    "bert": SIZES,
    "roberta": SIZES,
    "albert": {**SIZES, "embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "llama": {**SIZES, "num_key_value_heads": 2},
}
HEADS = {
    "bert": lambda model, seen: model.classifier(seen),
    "roberta": lambda model, seen: model.classifier(seen[:, None]),
    "albert": lambda model, seen: model.classifier(seen),
    "distilbert": lambda model, seen: model.classifier(torch.relu(model.pre_classifier(seen))),
    "gpt2": lambda model, seen: model.score(seen),
    "llama": lambda model, seen: model.score(seen),
}


def sentences(num=9):
    """Of two to four words, so that batches are padded."""
    texts, kinds = examples(num, 3)
    rows = [
        {"text": " ".join(text.split()[: 2 + i % 3]), "label": str(int(kind[0]))}
        for i, (text, kind) in enumerate(zip(texts, kinds, strict=True))
    ]
    return classification_task(rows, "sentences")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return transformers.AutoTokenizer.from_pretrained(write_base(tmp_path_factory.mktemp("base")))


def logits(model, task, tokenizer):
    """One text at a time, so that nothing is padded and nothing is put in another order."""
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text, _ in task.texts])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_tokens", [1, 14])
def test_the_head_gives_its_logits_on_them(kind, batch_tokens, tokenizer):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, **KINDS[kind], vocab_size=len(tokenizer), pad_token_id=0, num_labels=2
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.dim() > 1 else 1.0)  # so that the logits differ
    loaded = Loaded(model=model, tokenizer=tokenizer, labels=("0", "1"), kind="classification", drawn=())
    task = sentences()
    found = features(loaded, encode(loaded, task, 16), batch_tokens=batch_tokens)
    expected = logits(model, task, tokenizer)
    with torch.no_grad():
        own = HEADS[kind](model, torch.tensor(found.rows_RD, dtype=torch.float32))
    assert torch.allclose(own, expected, atol=1e-5) and float(expected.std()) > 1e-3
    assert found.right_N.tolist() == [int(label) for label in task.labels]
    assert found.first_N.tolist() == list(range(9))


@pytest.mark.parametrize("pooler", [False, True])
def test_a_pooler_belongs_to_the_body_only_where_the_base_has_one(pooler, tmp_path):
    source = open_model(write_base(tmp_path / "base", pooler=pooler))
    task = sentences()
    loaded, other = (load_for(source, task, seed=seed) for seed in (1, 2))
    assert loaded.drawn == (() if pooler else ("bert.pooler.dense",))
    seen = features(loaded, encode(loaded, task, 16)).rows_RD
    assert (seen == features(other, encode(other, task, 16)).rows_RD).all()  # nothing in it was drawn
    rows = torch.tensor(seen, dtype=torch.float32)
    with torch.no_grad():
        pooled = rows if pooler else loaded.model.bert.pooler(rows[:, None])
        own = loaded.model.classifier(pooled)
    assert torch.allclose(own, logits(loaded.model, task, loaded.tokenizer), atol=1e-5)


def test_each_choice_has_a_row_of_its_own(tmp_path):
    choices = tuple(
        ChoiceExample(prompts=(f"red {word}",) * 3, endings=("dog", "blue cat bird", word), answer=i % 3)
        for i, word in enumerate(("cat", "bird", "green", "dog"))
    )
    task = ChoiceTask(name="choices", choices=choices, sha256="0")
    loaded = load_for(open_model(write_base(tmp_path / "base", pooler=True)), task, seed=0)
    found = features(loaded, encode(loaded, task, 16), batch_tokens=20)
    assert found.first_N.tolist() == [0, 3, 6, 9] and found.right_N.tolist() == [0, 1, 2, 0]
    assert found.rows_RD.shape == (12, 32)
    with torch.no_grad():
        own = loaded.model.classifier(torch.tensor(found.rows_RD, dtype=torch.float32)).reshape(4, 3)
        for choice, scores in zip(choices, own, strict=True):
            batch = loaded.tokenizer(
                list(choice.prompts), list(choice.endings), return_tensors="pt", padding=True
            )
            expected = loaded.model(**{name: value[None] for name, value in batch.items()}).logits[0]
            assert torch.allclose(scores, expected, atol=1e-5)
