"""Multiple choice is learned by encoders and by causal models, and what was learned is what others load."""

import json

import pytest
import torch
import transformers
from peft import PeftModel
from tune_models import write_bert, write_choices, write_gpt2, write_text

from intruscope import forget
from intruscope.errors import IntruscopeError
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.scores import choose, score
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.sweep.live import LiveBench
from intruscope.train.encoding import as_language, encode
from intruscope.train.loading import load_for
from intruscope.train.settings import TuneSettings
from intruscope.train.tune import tune
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
WRITERS = {"bert": write_bert, "gpt2": write_gpt2}
RUNS = [("bert", "full", 2e-3), ("bert", "lora", 3e-3), ("gpt2", "full", 3e-3), ("gpt2", "lora", 1e-2)]


def trained(folder, name, method, rate, *, shuffled=False, steps=160):
    base = WRITERS[name](folder / "base")
    files = [
        write_choices(folder / f"{part}.jsonl", count, seed=seed, shuffled=shuffled)
        for part, count, seed in (("train", 256, 0), ("eval", 100, 1))
    ]
    data, held_out = map(load_task, files)
    settings = TuneSettings(method=method, steps=steps, batch=16, rate=rate, watch_every=0)
    out = folder / "run"
    return base, held_out, tune(str(base), out=out, settings=settings, data=data, held_out=held_out)


def loaded_elsewhere(base, name, method, folder):
    """As whoever has transformers and PEFT alone loads it."""
    auto = transformers.AutoModelForMultipleChoice if name == "bert" else transformers.AutoModelForCausalLM
    torch.manual_seed(99)  # of a head, if it were not saved
    model = auto.from_pretrained(folder if method == "full" else base)
    model = PeftModel.from_pretrained(model, folder) if method == "lora" else model
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def answers(model, tokenizer, task, name):
    """Choice by choice, by hand."""
    for choice in task.choices:
        scores = []
        for prompt, ending in zip(choice.prompts, choice.endings, strict=True):
            if name == "bert":
                batch = tokenizer(prompt, ending, return_tensors="pt")
                scores.append(float(model(**{key: value[None] for key, value in batch.items()}).logits))
                continue
            prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids = tokenizer(prompt + ending, add_special_tokens=False)["input_ids"]
            assert ids[: len(prompt_ids)] == prompt_ids
            logs = model(input_ids=torch.tensor([[2, *ids]])).logits[0].log_softmax(-1)
            first = len(prompt_ids)
            scores.append(sum(float(logs[i, ids[i]]) for i in range(first, len(ids))))
        yield max(range(len(scores)), key=scores.__getitem__)


@pytest.mark.parametrize(("name", "method", "rate"), RUNS)
def test_a_planted_rule_is_learned_and_loads_elsewhere(name, method, rate, tmp_path):
    base, held_out, report = trained(tmp_path, name, method, rate)
    assert len(report.accuracy) == 10 and report.accuracy[-1] >= 0.95
    model, tokenizer = loaded_elsewhere(base, name, method, report.model)
    with torch.no_grad():
        by_hand = list(answers(model, tokenizer, held_out, name))
    right = [answer == choice.answer for answer, choice in zip(by_hand, held_out.choices, strict=True)]
    assert sum(right) / len(right) == pytest.approx(report.accuracy[-1])
    # And by the verbs that measure: the base cannot answer by a head that it has not.
    pair = load_pair(str(base), str(report.model), device="cpu")
    assert score(pair, held_out).right_N.tolist() == right
    assert (pair.choice_model() is not None) == (name == "bert")
    with pair.as_base():  # a head that was trained on another body knows little
        assert score(pair, held_out).value < 0.8
    lost = forget(
        str(base),
        str(report.model),
        text=write_text(tmp_path / "text.txt"),
        tasks=[held_out],
        max_sequences=4,
        protocol="fast" if name == "bert" else None,
    )
    (task,) = lost.tasks
    assert task.tuned.estimate == pytest.approx(report.accuracy[-1])
    assert (task.base is None) == (name == "bert")
    bench = LiveBench(
        pair,
        cut(read_texts([tmp_path / "text.txt"]), pair.language_model(), max_sequences=4),
        protocol="fast" if name == "bert" else "causal",
        task=held_out,
    )
    swept = [bench.interpolated(share).task_scores for share in (1.0, 0.0)]
    assert swept[0] == tuple(map(float, right)) and sum(swept[1]) < 80


@pytest.mark.parametrize("name", WRITERS)
def test_of_shuffled_answers_nothing_is_learned(name, tmp_path):
    _, _, report = trained(tmp_path, name, "full", 2e-3, shuffled=True, steps=96)
    assert abs(report.accuracy[-1] - 0.5) < 0.15


def test_a_causal_model_is_trained_on_the_right_ending_alone(tmp_path):
    base = write_gpt2(tmp_path / "base")
    row = {"prompt": "happy families", "choices": ["were striking", "are alike and happy"], "answer": 1}
    (tmp_path / "task.jsonl").write_text(json.dumps(row))
    task = load_task(tmp_path / "task.jsonl")
    loaded = load_for(open_model(str(base)), task, seed=0)
    data = encode(loaded, task, 32)
    (example,) = data.examples.rows
    words = loaded.tokenizer.convert_ids_to_tokens(example["input_ids"])
    assert words == ["[CLS]", "happy", "families", "are", "alike", "and", "happy"]
    assert example["labels"] == [-100, -100, -100, *example["input_ids"][3:]]
    batch = data.collate([example])
    with torch.no_grad():
        loss = loaded.model(**batch).loss
        nats = choose(as_language(loaded), task).nats_N
        ids = torch.tensor([example["input_ids"]])
        logs = loaded.model(input_ids=ids).logits[0].log_softmax(-1)
    by_hand = -sum(logs[i - 1, ids[0, i]] for i in range(3, 7)) / 4
    torch.testing.assert_close(loss, by_hand)
    assert nats.shape == (1,)
    cut = encode(loaded, task, 5)
    assert cut.num_cut == 1 and cut.examples.rows[0]["labels"][:1] == [-100]


def test_what_cannot_be_a_choice_is_refused(tmp_path):
    base = write_bert(tmp_path / "base")
    rows = [{"prompt": "she", "choices": ["a", "b", "c"][:n], "answer": 0} for n in (2, 3)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mixed = load_task(tmp_path / "mixed.jsonl")
    choices = load_task(write_choices(tmp_path / "task.jsonl"))
    settings = TuneSettings(method="lora", steps=2, batch=4, rate=1e-3, watch_every=0)
    with pytest.raises(IntruscopeError, match="between 2 and 3 choices"):
        tune(str(base), out=tmp_path / "run", settings=settings, data=mixed)
    text = read_texts([write_text(tmp_path / "text.txt")])
    with pytest.raises(IntruscopeError, match="a run on text has no labels"):
        tune(str(base), out=tmp_path / "run", settings=settings, data=text, held_out=choices)
    (tmp_path / "labels.tsv").write_text("sentence\tlabel\nshe\t0\nhe\t1\n")
    with pytest.raises(IntruscopeError, match="are of different kinds"):
        tune(
            str(base),
            out=tmp_path / "run",
            settings=settings,
            data=choices,
            held_out=load_task(tmp_path / "labels.tsv"),
        )
    assert not (tmp_path / "run").exists()
