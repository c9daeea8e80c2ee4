"""A run begins with the base's numbers or a merged body's, and with the head that its data needs."""

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tune_models import write_bert, write_gpt2, write_task, write_text

from intruscope.errors import IntruscopeError
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.train.data import chosen
from intruscope.train.encoding import encode
from intruscope.train.loading import load_for
from intruscope.weights.source import open_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_bert(folder / "bert")
    write_gpt2(folder / "gpt2")
    write_task(folder / "task.tsv")
    write_text(folder / "text.txt")
    return folder


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_given_body_goes_on_and_the_heads_are_the_bases_or_new(name, files):
    """As from task to task: merged weights of a classifier, of which only the body is kept."""
    source, task = open_model(str(files / name)), load_task(files / "task.tsv")
    first = load_for(source, task, seed=0)
    merged = {key: value + 1.0 for key, value in first.model.state_dict().items()}
    again = load_for(source, task, seed=5, tensors=merged).model.state_dict()
    fresh = load_for(source, task, seed=5).model.state_dict()
    body = f"{first.model.base_model_prefix}."
    for key, value in again.items():
        assert torch.equal(value, merged[key] if key.startswith(body) else fresh[key]), key
    stored = load_file(files / name / "model.safetensors")
    language = load_for(source, read_texts([files / "text.txt"]), seed=0, tensors=merged)
    state = language.model.state_dict()
    tied = language.model.get_output_embeddings().weight
    assert torch.equal(tied, merged[next(k for k in merged if "word_embeddings" in k or "wte" in k)])
    head = [
        key for key in state if not key.startswith(body) and "decoder" not in key and "lm_head" not in key
    ]
    assert all(torch.equal(state[key], stored[key]) for key in head) and (head or name == "gpt2")
    bare = {key.removeprefix(body): value for key, value in merged.items()}
    without = load_for(source, task, seed=5, tensors=bare).model.state_dict()
    assert all(torch.equal(without[key], again[key]) for key in again)


def test_a_pooler_that_a_body_brings_is_not_drawn(files):
    source, task = open_model(str(files / "bert")), load_task(files / "task.tsv")
    first = load_for(source, task, seed=0)
    assert first.drawn == ("bert.pooler.dense",)
    assert load_for(source, task, seed=1, tensors=first.model.state_dict()).drawn == ()


def test_a_body_that_does_not_fit_is_refused(files):
    source, task = open_model(str(files / "bert")), load_task(files / "task.tsv")
    state = load_for(source, task, seed=0).model.state_dict()
    name = "bert.encoder.layer.0.output.dense.weight"
    with pytest.raises(IntruscopeError, match="the first is encoder.layer.0.output.dense.weight"):
        load_for(source, task, seed=0, tensors={k: v for k, v in state.items() if k != name})
    with pytest.raises(IntruscopeError, match="size mismatch"):
        load_for(source, task, seed=0, tensors=state | {name: state[name][:3]})


def test_a_head_is_drawn_from_the_seed_and_nothing_else_moves(files):
    source, task = open_model(str(files / "bert")), load_task(files / "task.tsv")
    torch.manual_seed(3)
    one = load_for(source, task, seed=1).model.state_dict()
    torch.manual_seed(4)
    two, other = (load_for(source, task, seed=seed).model.state_dict() for seed in (1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert {key for key in one if not torch.equal(one[key], other[key])} == {
        "classifier.weight", "bert.pooler.dense.weight"
    }  # fmt: skip


def test_fewer_examples_are_drawn_by_the_seed_and_stay_in_order(files):
    source, task = open_model(str(files / "bert")), load_task(files / "task.tsv")
    loaded = load_for(source, task, seed=0)
    everything = encode(loaded, task, 512).examples.rows
    rows = [encode(loaded, task, 512, at_most=10, seed=seed).examples.rows for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2] and all(len(each) == 10 for each in rows)
    places = list(chosen(len(everything), 10, 1))
    assert rows[0] == [everything[place] for place in places]
    assert places == sorted(set(places)) and places != list(range(10))
    assert encode(loaded, task, 512, at_most=1000).examples.rows == everything
    text = read_texts([files / "text.txt"])
    language = load_for(source, text, seed=0)
    lines = encode(language, text, 32).examples.rows
    few = encode(language, text, 32, at_most=3, seed=1).examples.rows
    assert len(few) == 3 and all(line in lines for line in few)


def test_a_classifier_of_gpt2_pads_where_it_looks_for_the_end(files):
    loaded = load_for(open_model(str(files / "gpt2")), load_task(files / "task.tsv"), seed=0)
    assert isinstance(loaded.model, transformers.GPT2ForSequenceClassification)
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id is not None
    assert loaded.labels == ("cold", "happy") == tuple(loaded.model.config.id2label.values())
